// One chunk of an average under a kernel that factorises: its features, what it adds to the sums over keys, its
// outputs, and its gradients. linear.cpp says what is computed, and runs over the chunks.

#pragma once

#include "kernels.h"
#include "product.h"

namespace {

constexpr int C = 64;               // tokens of a chunk
constexpr float NOTHING = -1e30f;   // the shift before the first key
constexpr float SMALLEST = 1e-26f;  // a denominator below this has lost terms

struct Sums {
    float *S, *z, *c;  // (m e), (m), (m)
};

struct View {
    const float *p;
    long row;
};

// What the keys of a chunk, or the queries, bring to one thread.
struct Tiles {
    int d, m, e;  // padded to whole panels
    Scratch x_copy, v_copy, g, xT, vT, gT, phi_q, phi_k, P, A, out, change, gd, den;
    View v{};  // tokens by width
    Tiles(int d, int m, int e)
        : d(d), m(m), e(e), x_copy(C * d), v_copy(C * e), g(C * e), xT(d * C), vT(e * C), gT(e * C), phi_q(m * C),
          phi_k(m * C), P(C * C), A(C * C), out(C * std::max(d, e)), change(m * C), gd(C), den(C) {}
};

struct Kernel {
    const Linear &p;
    int d, m, e;        // padded to whole panels
    long heads;         // of the whole batch
    Scratch weights;    // W, padded: (m d)
    explicit Kernel(const Linear &p)
        : p(p), d(round_up(p.d, N_R)), m(round_up(p.m, N_R)), e(round_up(p.e, N_R)), heads(p.batch * p.heads),
          weights(p.map == FAVOR ? (size_t)m * d : 1) {
        if (p.map == FAVOR)
            for (int f = 0; f < p.m; f++) std::memcpy(weights + (long)f * d, p.W + (long)f * p.d, sizeof(float) * p.d);
    }

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    // Up to C tokens: where they lie, if they fill a tile, and else in a copy with zeros around them.
    View tile_of(const float *from, const int64_t *stride, long head, long t, int n, int width, int padded, float *copy) const {
        const float *at = row(from, stride, head, t);
        if (n == C && width == padded) return {at, stride[2]};
        for (int i = 0; i < n; i++) {
            std::memcpy(copy + (long)i * padded, at + i * stride[2], sizeof(float) * width);
            std::memset(copy + (long)i * padded + width, 0, sizeof(float) * (padded - width));
        }
        std::memset(copy + (long)n * padded, 0, sizeof(float) * (C - n) * padded);
        return {copy, padded};
    }

    bool seen(long head, long t) const { return !p.valid || p.valid[head / p.heads * p.keys + t]; }

    // The features of some queries, feature by token.
    void queries(Tiles &w, long head, long t, int n, const float *c) const {
        project(w, tile_of(p.q, p.q_stride, head, t, n, p.d, d, w.x_copy), w.phi_q);
        if (p.map == ELU) elu(w.phi_q, n);
        if (!exponential()) return;
        vec top[C / LANES];
        for (int j = 0; j < C / LANES; j++) top[j] = all(-INFINITY);
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) top[j] = greater(top[j], load(w.phi_q + f * C + j * LANES) + c[f]);
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) {
                float *at = w.phi_q + f * C + j * LANES;
                store(at, exp(load(at) + c[f] - top[j]));
            }
    }

    // The same for keys; `c` grows with them, and what was summed under the old shifts is rescaled.
    void keys(Tiles &w, long head, long t, int n, float *c, Sums *sums) const {
        project(w, tile_of(p.k, p.k_stride, head, t, n, p.d, d, w.x_copy), w.phi_k);
        if (p.map == ELU) elu(w.phi_k, n);
        if (!exponential()) {
            for (int j = 0; j < n; j++)
                if (!seen(head, t + j))
                    for (int f = 0; f < p.m; f++) w.phi_k[f * C + j] = 0;
            return;
        }
        vec norm[C / LANES];
        for (int j = 0; j < C / LANES; j++) norm[j] = vec{};
        for (int i = 0; p.map == FAVOR && i < p.d; i++)
            for (int j = 0; j < C / LANES; j++) {
                vec x = load(w.xT + i * C + j * LANES);
                norm[j] += x * x * p.half;
            }
        for (int j = 0; j < C; j++)
            if (j >= n || !seen(head, t + j)) norm[j / LANES][j % LANES] = INFINITY;
        for (int f = 0; f < p.m; f++) {
            vec top = all(c[f]);
            float *at = w.phi_k + f * C;
            for (int j = 0; j < C / LANES; j++) {
                vec x = load(at + j * LANES) - norm[j];
                store(at + j * LANES, x);
                top = greater(top, x);
            }
            float shift = largest(top);
            if (sums && shift > c[f]) {
                float scale = std::exp(c[f] - shift);
                sums->z[f] *= scale;
                for (int j = 0; j < e; j += LANES) store(sums->S + (long)f * e + j, load(sums->S + (long)f * e + j) * scale);
            }
            c[f] = shift;
            for (int j = 0; j < C / LANES; j++) store(at + j * LANES, exp(load(at + j * LANES) - shift));
        }
    }

    bool exponential() const { return p.map == FAVOR || p.map == LOGS; }

    // Tokens, projected where the map says so, feature by token.
    void project(Tiles &w, View x, float *to) const {
        if (p.map != FAVOR) return transpose(x.p, x.row, C, d, to);
        transpose(x.p, x.row, C, d, w.xT);
        product<false>(p.m, C, p.d, {weights, d, 1}, {w.xT, C, N_R}, {to, C, N_R});
    }

    // elu(x) + 1 of the first n tokens; the others have no features.
    void elu(float *phi, int n) const {
        for (int f = 0; f < p.m; f++) {
            for (int j = 0; j < C; j += LANES) store(phi + f * C + j, elu_plus_one(load(phi + f * C + j)));
            for (int j = n; j < C; j++) phi[f * C + j] = 0;
        }
    }

    void values(Tiles &w, long head, long t, int n) const {
        w.v = tile_of(p.v, p.v_stride, head, t, n, p.e, e, w.v_copy);
    }

    // S += phi_k v, z += phi_k 1
    void remember(Tiles &w, Sums &s) const {
        product<true>(p.m, p.e, C, {w.phi_k, C, 1}, {w.v.p, w.v.row, N_R}, {s.S, e, N_R});
        for (int f = 0; f < p.m; f++) {
            vec x = vec{};
            for (int j = 0; j < C; j += LANES) x += load(w.phi_k + f * C + j);
            s.z[f] += sum(x);
        }
    }

    // P_ji = phi_k_j . phi_q_i for keys j up to query i, and zero for later ones.
    void weigh(Tiles &w) const {
        product<false, RESULT_UPPER>(C, C, p.m, {w.phi_k, 1, C}, {w.phi_q, C, N_R}, {w.P, C, N_R});
        for (int j = 0; j < C; j++) std::memset(w.P + (long)j * C, 0, sizeof(float) * j);
    }

    // out = (phi_q S + P v) / (phi_q z + P 1); true where a query that sees keys has a denominator in range.
    bool answer(Tiles &w, const Sums &s, long head, long t, int n, bool inside, bool any) const {
        product<false>(C, p.e, p.m, {w.phi_q, 1, C}, {s.S, e, N_R}, {w.out, e, N_R});
        vec total[C / LANES];
        for (int j = 0; j < C / LANES; j++) total[j] = vec{};
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) total[j] += load(w.phi_q + f * C + j * LANES) * s.z[f];
        if (inside) {
            product<true, LEFT_LOWER>(C, p.e, C, {w.P, 1, C}, {w.v.p, w.v.row, N_R}, {w.out, e, N_R});
            for (int i = 0; i < C; i++)
                for (int j = 0; j < C / LANES; j++) total[j] += load(w.P + i * C + j * LANES);
        }
        for (int j = 0; j < C / LANES; j++) store(w.den + j * LANES, total[j]);
        bool fine = true;
        for (int i = 0; i < n; i++) {
            float den = w.den[i];
            any = any || (inside && seen(head, t + i));
            if (exponential() && any && den <= SMALLEST) fine = false;
            long at = head * p.queries + t + i;
            scale(p.out + at * p.e, w.out + (long)i * e, den == 0 ? 0 : 1 / den, p.e);
            p.den[at] = den;
        }
        return fine;
    }

    // g / den, and minus its product with out: the gradients of numerators and denominators.
    void gradients(Tiles &w, long head, long t, int n) const {
        for (int i = 0; i < n; i++) {
            long at = head * p.queries + t + i;
            float *g = w.g + (long)i * e;
            scale(g, p.grad + at * p.e, p.den[at] == 0 ? 0 : 1 / p.den[at], p.e);
            std::memset(g + p.e, 0, sizeof(float) * (e - p.e));
            w.gd[i] = -dot(g, p.out + at * p.e, p.e);
        }
        std::memset(w.g + (long)n * e, 0, sizeof(float) * (C - n) * e);
        std::fill(w.gd + n, w.gd + C, 0.0f);
    }

    // From the gradient of features, `change`, to that of queries or keys: dx = phi'(x)^T change.
    void pull_back(Tiles &w, const float *phi, long head, long t, int n, const float *from, const int64_t *stride,
                   float *to, long length, bool key) const {
        vec total[C / LANES];
        for (int j = 0; j < C / LANES; j++) total[j] = vec{};
        for (int f = 0; f < p.m && p.map != GIVEN; f++)
            for (int j = 0; j < C / LANES; j++) {
                float *at = w.change + f * C + j * LANES;
                vec y = load(phi + f * C + j * LANES), x = load(at) * (p.map == ELU && !(y < 1.0f) ? all(1) : y);
                store(at, x);
                total[j] += x;
            }
        if (p.map == FAVOR) product<false>(C, p.d, p.m, {w.change, 1, C}, {weights, d, N_R}, {w.out, d, N_R});
        else transpose(w.change, m, C, w.out);
        for (int j = 0; j < C / LANES; j++) store(w.den + j * LANES, total[j]);
        for (int i = 0; i < n; i++) {
            float *x = to + (head * length + t + i) * p.d, *own = w.out + (long)i * d;
            if (key && !seen(head, t + i)) std::memset(x, 0, sizeof(float) * p.d);
            else if (key && p.map == FAVOR) blend(x, own, 1, row(from, stride, head, t + i), -2 * p.half * w.den[i], p.d);
            else std::memcpy(x, own, sizeof(float) * p.d);
        }
    }
};

}  // namespace
