// The causal averages of linear.cpp for a few tokens, as in decoding: one after the other, with no tiles to fill.
//
// Each token's key is in before its query reads, and shifts follow key by key, so that nothing can leave the range.

#include "kernels.h"
#include "simd.h"

namespace {

struct Stream {
    const Linear &p;
    long head;
    Scratch phi, scale, shift, sums;
    Stream(const Linear &p, long head)
        : p(p), head(head), phi(p.m + LANES), scale(p.m + LANES), shift(p.m + LANES), sums(p.e + LANES) {}

    const float *row(const float *from, const int64_t *stride, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    bool exponential() const { return p.map == FAVOR || p.map == LOGS; }

    // Features of one query or key; of exponential ones the logarithms, up to what is the same for all of a query.
    void features(const float *x, bool key) {
        float norm = p.map == FAVOR && key ? p.half * dot(x, x, p.d) : 0;
        for (int f = 0; f < p.m; f++) {
            if (p.map == FAVOR) phi[f] = dot(p.W + (long)f * p.d, x, p.d) - norm;
            else if (p.map == ELU) phi[f] = x[f] > 0 ? x[f] + 1 : std::exp(x[f]);
            else phi[f] = x[f];
        }
    }

    void exponentials() {
        for (int f = 0; f < p.m; f += LANES) store(phi + f, exp(load(phi + f)));
    }

    // The features of a key under its shifts, and what those leave of the sums so far.
    void raise(float *c) {
        std::memcpy(shift.p, c, sizeof(float) * p.m);
        for (int f = 0; f < p.m; f += LANES) {
            vec top = greater(load(shift + f), load(phi + f));
            store(scale + f, exp(load(shift + f) - top));
            store(phi + f, exp(load(phi + f) - top));
            store(shift + f, top);
        }
        std::memcpy(c, shift.p, sizeof(float) * p.m);
    }

    void remember(const float *v, float *S, float *z, float *c) {
        if (exponential()) raise(c);
        for (int f = 0; f < p.m; f++) {
            float left = exponential() ? scale[f] : 1;
            blend(S + (long)f * p.e, S + (long)f * p.e, left, v, phi[f], p.e);
            z[f] = z[f] * left + phi[f];
        }
    }

    void answer(float *out, const float *S, const float *z, const float *c) {
        if (exponential()) {
            float top = -INFINITY;
            for (int f = 0; f < p.m; f++) top = std::max(top, phi[f] += c[f]);
            for (int f = 0; f < p.m; f++) phi[f] -= top;
            exponentials();
        }
        std::memset(sums.p, 0, sizeof(float) * p.e);
        for (int f = 0; f < p.m; f++) blend(sums, sums, 1, S + (long)f * p.e, phi[f], p.e);
        float den = dot(phi, z, p.m);
        for (int i = 0; i < p.e; i++) out[i] = den == 0 ? 0 : sums[i] / den;
    }

    void run() {
        size_t m = p.m, e = p.e;
        float *S = p.S1 + head * m * e, *z = p.z1 + head * m, *c = p.c1 + head * m;
        if (p.S0) {
            std::memcpy(S, p.S0 + head * m * e, sizeof(float) * m * e);
            std::memcpy(z, p.z0 + head * m, sizeof(float) * m);
            std::memcpy(c, p.c0 + head * m, sizeof(float) * m);
        } else {
            std::memset(S, 0, sizeof(float) * m * e);
            std::memset(z, 0, sizeof(float) * m);
            std::fill(c, c + m, -1e30f);
        }
        for (long t = 0; t < p.keys; t++) {
            if (!p.valid || p.valid[head / p.heads * p.keys + t]) {
                features(row(p.k, p.k_stride, t), true);
                remember(row(p.v, p.v_stride, t), S, z, c);
            }
            features(row(p.q, p.q_stride, t), false);
            answer(p.out + (head * p.queries + t) * p.e, S, z, c);
        }
    }
};

}  // namespace

extern "C" int linear_step(const Linear *given) {
    long heads = given->batch * given->heads;
    int threads = heads * given->m * given->e < 1 << 18 ? 1 : given->threads;  // waking a thread costs microseconds
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long head = 0; head < heads; head++) Stream(*given, head).run();
    return 0;
}
