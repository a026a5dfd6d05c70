// The causal averages of linear.cpp for a few tokens, as in decoding: one after the other, with no tiles to fill.
//
// Each token's key is in before its query reads, and shifts follow key by key, so that nothing can leave the range.

#include "half.h"
#include "kernels.h"
#include "product.h"

namespace {

// One token, widened into `room` where it is narrow.
const float *at(const Linear &p, const float *from, const int64_t *stride, long head, long t, int n, float *room) {
    return row_of(from, head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2], n, p.dtype, room);
}

// W x for the queries and keys of all heads at once, feature by token: by itself each token would read all of W.
struct Projected {
    long tokens, row;
    Scratch x, logs;
    explicit Projected(const Linear &p)
        : tokens(p.batch * p.heads * p.keys), row(p.kind == FAVOR ? round_up(2 * tokens, N_R) : 0), x(p.d * row),
          logs(p.m * row) {
        if (p.kind != FAVOR) return;
        Scratch rooms(2 * p.d);
        for (long i = 0; i < tokens; i++) {
            const float *q = at(p, p.q, p.q_stride, i / p.keys, i % p.keys, p.d, rooms);
            const float *k = at(p, p.k, p.k_stride, i / p.keys, i % p.keys, p.d, rooms + p.d);
            for (int j = 0; j < p.d; j++) x[j * row + i] = q[j], x[j * row + tokens + i] = k[j];
        }
        product<false>(p.m, row, p.d, {p.W, p.d, 1}, {x, row, N_R}, {logs, row, N_R});
    }
    float query(long i, int f) const { return logs[f * row + i]; }
    float key(long i, int f) const { return logs[f * row + tokens + i]; }
};

struct Stream {
    const Linear &p;
    const Projected &projected;
    bool exponential;
    Scratch room;  // for the numbers of a token
    float *q_room, *k_room, *v_room, *out_room;
    Scratch phi_q, phi_k, left, shift;
    Stream(const Linear &p, const Projected &projected)
        : p(p), projected(projected), exponential(p.kind == FAVOR || p.kind == LOGS), room(2 * (p.d + p.e)),
          q_room(room), k_room(q_room + p.d), v_room(k_room + p.d), out_room(v_room + p.e), phi_q(p.m + LANES),
          phi_k(p.m + LANES), left(p.m + LANES), shift(p.m + LANES) {
        std::fill(left + 0, left + p.m, 1.0f);
    }

    // Features; of exponential ones the logarithms, up to what is the same for all of a query.
    void features(long head, long t) {
        const float *q = at(p, p.q, p.q_stride, head, t, p.d, q_room), *k = at(p, p.k, p.k_stride, head, t, p.d, k_room);
        if (p.kind == FAVOR) {
            float norm = p.half * dot(k, k, p.d);
            for (int f = 0; f < p.m; f++) {
                phi_q[f] = projected.query(head * p.keys + t, f);
                phi_k[f] = projected.key(head * p.keys + t, f) - norm;
            }
            return;
        }
        std::memcpy(phi_q.p, q, sizeof(float) * p.m);
        std::memcpy(phi_k.p, k, sizeof(float) * p.m);
        for (int f = 0; f < p.m && p.kind == ELU; f += LANES) {
            store(phi_q + f, elu_plus_one(load(phi_q + f)));
            store(phi_k + f, elu_plus_one(load(phi_k + f)));
        }
    }

    // The features of a key under its shifts, and how much of the sums so far those leave.
    void raise() {
        for (int f = 0; f < p.m; f += LANES) {
            vec top = greater(load(shift + f), load(phi_k + f));
            store(left + f, exp(load(shift + f) - top));
            store(phi_k + f, exp(load(phi_k + f) - top));
            store(shift + f, top);
        }
    }

    void lower() {
        float top = -INFINITY;
        for (int f = 0; f < p.m; f++) top = std::max(top, phi_q[f] += shift[f]);
        for (int f = 0; f < p.m; f += LANES) store(phi_q + f, exp(load(phi_q + f) - top));
    }

    // S and z are read from S0 and z0, which may be the same.
    void advance(long head, long t, const float *S0, const float *z0, float *S, float *z) {
        bool seen = !p.valid || p.valid[head / p.heads * p.keys + t];
        features(head, t);
        if (!seen) std::fill(phi_k + 0, phi_k + p.m, exponential ? -INFINITY : 0.0f);
        if (exponential) raise(), lower();
        const float *v = at(p, p.v, p.v_stride, head, t, p.e, v_room);
        float den = 0;
        for (int f = 0; f < p.m; f++) {
            z[f] = z0[f] * left[f] + phi_k[f];
            den += z[f] * phi_q[f];
        }
        const long first = (head * p.queries + t) * p.e;
        float *out = p.dtype ? out_room : p.out + first, share = den == 0 ? 0 : 1 / den;
        int c = 0;
        for (; c + 4 * LANES <= p.e; c += 4 * LANES) columns<4>(c, S0, v, S, share, out);
        for (; c + LANES <= p.e; c += LANES) columns<1>(c, S0, v, S, share, out);
        for (; c < p.e; c++) {
            float sum = 0;
            for (int f = 0; f < p.m; f++) {
                long i = (long)f * p.e + c;
                sum += (S[i] = S0[i] * left[f] + v[c] * phi_k[f]) * phi_q[f];
            }
            out[c] = sum * share;
        }
        if (p.dtype) write_row(out, p.e, p.dtype, p.out, first);
    }

    // Some columns of S with the token in them, and what the query reads there, which stays in registers.
    template <int vectors>
    void columns(int c, const float *S0, const float *v, float *S, float share, float *out) const {
        vec value[vectors], sum[vectors] = {};
        for (int i = 0; i < vectors; i++) value[i] = load(v + c + i * LANES);
        for (int f = 0; f < p.m; f++)
            for (int i = 0; i < vectors; i++) {
                long place = (long)f * p.e + c + i * LANES;
                vec now = load(S0 + place) * left[f] + value[i] * phi_k[f];
                store(S + place, now);
                sum[i] += now * phi_q[f];
            }
        for (int i = 0; i < vectors; i++) store(out + c + i * LANES, sum[i] * share);
    }

    void run(long head) {
        size_t m = p.m, size = m * p.e;
        float *S = p.S1 + head * size, *z = p.z1 + head * m;
        if (!p.S0) {
            std::memset(S, 0, sizeof(float) * size);
            std::memset(z, 0, sizeof(float) * m);
        } else if (!p.keys) {
            std::memcpy(S, p.S0 + head * size, sizeof(float) * size);
            std::memcpy(z, p.z0 + head * m, sizeof(float) * m);
        }
        if (p.S0 && exponential) std::memcpy(shift.p, p.c0 + head * m, sizeof(float) * m);
        else std::fill(shift + 0, shift + m, -1e30f);
        for (long t = 0; t < p.keys; t++) {
            bool first = t == 0 && p.S0;
            advance(head, t, first ? p.S0 + head * size : S, first ? p.z0 + head * m : z, S, z);
        }
        if (exponential) std::memcpy(p.c1 + head * m, shift.p, sizeof(float) * m);
    }
};

}  // namespace

extern "C" int linear_step(const Linear *call) {
    long heads = call->batch * call->heads;
    int threads = heads * call->m * call->e < 1 << 18 ? 1 : call->threads;  // waking a thread costs microseconds
    Projected projected(*call);
#pragma omp parallel num_threads(threads)
    {
        Stream stream(*call, projected);
#pragma omp for
        for (long head = 0; head < heads; head++) stream.run(head);
    }
    return 0;
}
