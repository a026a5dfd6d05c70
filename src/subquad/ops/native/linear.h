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

// What the keys of a chunk, or the queries, bring to one thread.
struct Tiles {
    int d, m, e;  // padded to whole panels
    Scratch x, v, g, xT, vT, gT, phi_q, phi_k, P, A, out, change, gd, den;
    Tiles(int d, int m, int e)
        : d(d), m(m), e(e), x(C * d), v(C * e), g(C * e), xT(d * C), vT(e * C), gT(e * C), phi_q(m * C), phi_k(m * C),
          P(C * C), A(C * C), out(C * std::max(d, e)), change(m * C), gd(C), den(C) {}
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

    static void rows(const float *from, long stride, int n, int width, float *to, int ld) {
        for (int i = 0; i < n; i++) {
            std::memcpy(to + (long)i * ld, from + i * stride, sizeof(float) * width);
            std::memset(to + (long)i * ld + width, 0, sizeof(float) * (ld - width));
        }
        std::memset(to + (long)n * ld, 0, sizeof(float) * (C - n) * ld);
    }

    bool seen(long head, long t) const { return !p.valid || p.valid[head / p.heads * p.keys + t]; }

    // Tile `x` holds tokens by width; make the features of it, width or feature by token.
    void queries(Tiles &w, long head, long t, int n, const float *c) const {
        rows(row(p.q, p.q_stride, head, t), p.q_stride[2], n, p.d, w.x, d);
        project(w, w.phi_q);
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
        rows(row(p.k, p.k_stride, head, t), p.k_stride[2], n, p.d, w.x, d);
        project(w, w.phi_k);
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

    // The tokens of tile `x`, projected where the map says so, feature by token.
    void project(Tiles &w, float *to) const {
        if (p.map != FAVOR) return transpose(w.x, C, d, to);
        transpose(w.x, C, d, w.xT);
        product<false>(p.m, C, p.d, {weights, d, 1}, {w.xT, C, N_R}, {to, C, N_R});
    }

    static vec elu(vec x) { return x > vec{} ? x + 1.0f : exp(x > vec{} ? vec{} : x); }

    // elu(x) + 1 of the first n tokens; the others have no features.
    void elu(float *phi, int n) const {
        for (int f = 0; f < p.m; f++) {
            for (int j = 0; j < C; j += LANES) store(phi + f * C + j, elu(load(phi + f * C + j)));
            for (int j = n; j < C; j++) phi[f * C + j] = 0;
        }
    }

    void values(Tiles &w, long head, long t, int n) const {
        rows(row(p.v, p.v_stride, head, t), p.v_stride[2], n, p.e, w.v, e);
        for (int j = 0; p.valid && j < n; j++)
            if (!seen(head, t + j)) std::memset(w.v + (long)j * e, 0, sizeof(float) * e);
    }

    // S += phi_k v, z += phi_k 1
    void remember(Tiles &w, Sums &s) const {
        product<true>(p.m, p.e, C, {w.phi_k, C, 1}, {w.v, e, N_R}, {s.S, e, N_R});
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
            product<true, LEFT_LOWER>(C, p.e, C, {w.P, 1, C}, {w.v, e, N_R}, {w.out, e, N_R});
            for (int i = 0; i < C; i++)
                for (int j = 0; j < C / LANES; j++) total[j] += load(w.P + i * C + j * LANES);
        }
        bool fine = true;
        for (int i = 0; i < n; i++) {
            float den = total[i / LANES][i % LANES];
            any = any || (inside && seen(head, t + i));
            if (exponential() && any && den <= SMALLEST) fine = false;
            float over = den == 0 ? 0 : 1 / den;
            float *out = p.out + (head * p.queries + t + i) * p.e;
            for (int j = 0; j < p.e; j++) out[j] = w.out[i * e + j] * over;
            p.den[head * p.queries + t + i] = den;
        }
        return fine;
    }

    // g / den, and minus its product with out: the gradients of numerators and denominators.
    void gradients(Tiles &w, long head, long t, int n) const {
        std::memset(w.g.p, 0, sizeof(float) * C * e);
        for (int i = 0; i < C; i++) {
            long at = head * p.queries + t + i;
            float over = i < n && p.den[at] != 0 ? 1 / p.den[at] : 0, s = 0;
            for (int j = 0; i < n && j < p.e; j++) {
                w.g[i * e + j] = p.grad[at * p.e + j] * over;
                s += w.g[i * e + j] * p.out[at * p.e + j];
            }
            w.gd[i] = -s;
        }
    }

    // From the gradient of features, `change`, to that of queries or keys: dx = phi'(x)^T change.
    void pull_back(Tiles &w, const float *phi, long head, long t, int n, const float *from, const int64_t *stride,
                   float *to, long length, bool key) const {
        if (p.map == FAVOR) {
            vec total[C / LANES];
            for (int j = 0; j < C / LANES; j++) total[j] = vec{};
            for (int f = 0; f < p.m; f++)
                for (int j = 0; j < C / LANES; j++) {
                    float *at = w.change + f * C + j * LANES;
                    vec x = load(at) * load(phi + f * C + j * LANES);
                    store(at, x);
                    total[j] += x;
                }
            product<false>(C, p.d, p.m, {w.change, 1, C}, {weights, d, N_R}, {w.out, d, N_R});
            for (int i = 0; i < n; i++) {
                float *x = to + (head * length + t + i) * p.d, pull = key ? -2 * p.half * total[i / LANES][i % LANES] : 0;
                const float *k = row(from, stride, head, t + i);
                bool real = !key || seen(head, t + i);
                for (int j = 0; j < p.d; j++) x[j] = real ? w.out[i * d + j] + (key ? pull * k[j] : 0) : 0;
            }
            return;
        }
        for (int i = 0; i < n; i++) {
            float *x = to + (head * length + t + i) * p.d;
            bool real = !key || seen(head, t + i);
            for (int f = 0; f < p.d; f++) {
                float y = phi[f * C + i], slope = p.map == GIVEN ? 1 : p.map == LOGS ? y : std::min(y, 1.0f);
                x[f] = real ? w.change[f * C + i] * slope : 0;
            }
        }
    }
};

}  // namespace
