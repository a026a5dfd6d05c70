// One chunk of an average under a kernel that factorises: its features, what it adds to the sums over keys, its
// outputs, and its gradients. linear.cpp says what is computed, and runs over the chunks.

#pragma once

#include "half.h"
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

// What the keys of a chunk, or the queries, bring to one thread: a token a row, but for what is turned.
struct Tiles {
    int d, m, e;  // padded to whole panels
    Scratch q_copy, k_copy, v_copy, g, phi_q, phi_k, turned, turned_sums, P, A, out, change, gd, den;
    View k{}, v{};
    Tiles(int d, int m, int e, int f)
        : d(d), m(m), e(e), q_copy(C * d), k_copy(C * d), v_copy(C * e), g(C * e), phi_q(C * f), phi_k(C * f), turned(C * std::max(m, e)),
          turned_sums(e * f), P(C * C), A(C * C), out(C * std::max(d, e)), change(C * f), gd(C), den(C) {}
};

struct Kernel {
    const Linear &p;
    int d, m, e;        // padded to whole panels
    int f;              // from one row of features to the next: not a power of two, whose rows would share few sets of a cache
    long heads;         // of the whole batch
    Scratch weights, turned_weights;  // W, padded: (m d), and its transpose, panel by panel
    explicit Kernel(const Linear &p)
        : p(p), d(round_up(p.d, N_R)), m(round_up(p.m, N_R)), e(round_up(p.e, N_R)), f(m + LANES), heads(p.batch * p.heads),
          weights(p.kind == FAVOR ? (size_t)m * d : 1), turned_weights(p.kind == FAVOR ? (size_t)d * m : 1) {
        if (p.kind != FAVOR) return;
        for (int c = 0; c < p.m; c++) std::memcpy(weights + (long)c * d, p.W + (long)c * p.d, sizeof(float) * p.d);
        for (int c = 0; c < m; c += N_R) transpose(weights + (long)c * d, d, N_R, d, turned_weights + (long)c * d, N_R);
    }

    // Up to C tokens: where they lie, if they fill a tile, and else in a copy with zeros around them.
    View tile_of(const float *from, const int64_t *stride, long head, long t, int n, int width, int padded, float *copy) const {
        const int64_t first = head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
        if (!p.dtype && n == C && width == padded) return {from + first, stride[2]};
        for (int i = 0; i < n; i++) {
            read_row(from, first + i * stride[2], width, p.dtype, copy + (long)i * padded);
            std::memset(copy + (long)i * padded + width, 0, sizeof(float) * (padded - width));
        }
        std::memset(copy + (long)n * padded, 0, sizeof(float) * (C - n) * padded);
        return {copy, padded};
    }

    bool seen(long head, long t) const { return !p.valid || p.valid[head / p.heads * p.keys + t]; }

    bool exponential() const { return p.kind == FAVOR || p.kind == LOGS; }

    // Features, or their logarithms where they are exponentials.
    void project(View x, float *to) const {
        if (p.kind == FAVOR) product<false>(C, p.m, p.d, {x.p, x.row, 1}, {turned_weights, N_R, (long)d * N_R}, {to, f, N_R});
        else if (p.kind == ELU) each(x, to, [](vec y) { return elu_plus_one(y); });
        else each(x, to, [](vec y) { return y; });
        for (int i = 0; i < C && p.m < m; i++) std::fill(to + i * f + p.m, to + i * f + m, nothing());
    }

    template <class Map>
    void each(View x, float *to, Map map) const {
        for (int i = 0; i < C; i++)
            for (int c = 0; c < m; c += LANES) store(to + i * f + c, map(load(x.p + i * x.row + c)));
    }

    float nothing() const { return exponential() ? -INFINITY : 0; }

    void queries(Tiles &w, long head, long t, int n, const float *c) const {
        project(tile_of(p.q, p.q_stride, head, t, n, p.d, d, w.q_copy), w.phi_q);
        for (int i = 0; i < C && exponential(); i += LANES) {
            vec top[LANES];
            float *phi = w.phi_q + i * f;
            for (int x = 0; x < LANES; x++) {
                top[x] = all(-INFINITY);
                for (int j = 0; j < m; j += LANES) top[x] = greater(top[x], load(phi + x * f + j) + load(c + j));
            }
            transpose(top);
            for (int x = 1; x < LANES; x++) top[0] = greater(top[0], top[x]);
            for (int x = 0; x < LANES; x++)
                for (int j = 0; j < m; j += LANES) store(phi + x * f + j, exp(load(phi + x * f + j) + load(c + j) - top[0][x]));
        }
    }

    // `c` grows with the keys, and what was summed under the old shifts is rescaled.
    void keys(Tiles &w, long head, long t, int n, float *c, Sums *sums) const {
        w.k = tile_of(p.k, p.k_stride, head, t, n, p.d, d, w.k_copy);
        project(w.k, w.phi_k);
        for (int i = 0; i < C; i++)
            if (i >= n || !seen(head, t + i)) std::fill(w.phi_k + i * f, w.phi_k + i * f + m, nothing());
        if (!exponential()) return;
        float norm[C] = {};
        for (int i = 0; i < n && p.kind == FAVOR; i++) norm[i] = dot(w.k.p + i * w.k.row, w.k.p + i * w.k.row, p.d) * p.half;
        for (int j = 0; j < m; j += LANES) {
            vec before = load(c + j), top = before;
            for (int i = 0; i < C; i++) {
                float *at = w.phi_k + i * f + j;
                store(at, load(at) - norm[i]);
                top = greater(top, load(at));
            }
            for (int i = 0; i < C; i++) store(w.phi_k + i * f + j, exp(load(w.phi_k + i * f + j) - top));
            store(c + j, top);
            if (sums) rescale(*sums, j, exp(before - top));
        }
    }

    // The sums of LANES features, from that at j on.
    void rescale(const Sums &sums, int j, vec by) const {
        store(sums.z + j, load(sums.z + j) * by);
        for (int x = 0; x < LANES; x++) {
            float *S = sums.S + (long)(j + x) * e;
            if (by[x] != 1) scale(S, S, by[x], e);
        }
    }

    void values(Tiles &w, long head, long t, int n) const {
        w.v = tile_of(p.v, p.v_stride, head, t, n, p.e, e, w.v_copy);
    }

    // S += phi_k^T v, z += phi_k^T 1
    void remember(Tiles &w, Sums &s) const {
        product<true>(p.m, p.e, C, {w.phi_k, 1, f}, {w.v.p, w.v.row, N_R}, {s.S, e, N_R});
        for (int j = 0; j < m; j += LANES) {
            vec x = vec{};
            for (int i = 0; i < C; i++) x += load(w.phi_k + i * f + j);
            store(s.z + j, load(s.z + j) + x);
        }
    }

    // P_ji = phi_k_j . phi_q_i for keys j up to query i.
    void weigh(Tiles &w) const {
        transpose(w.phi_q, f, C, m, w.turned, C);
        product<false, RESULT_UPPER>(C, C, p.m, {w.phi_k, f, 1}, {w.turned, C, N_R}, {w.P, C, N_R});
        keep_upper(w.P);
    }

    // Zero what products of triangles read left of the diagonal.
    static void keep_upper(float *tile) {
        static_assert(M_R <= LANES);
        for (int j = 0; j < C; j++) {
            float *own = tile + j * C + j / LANES * LANES;
            store(own, counted() >= all(j % LANES) ? load(own) : vec{});
            if (j >= LANES) store(own - LANES, vec{});
        }
    }

    // Rows of a product: where they belong, if they fill a tile.
    Result result(float *to, int width, int padded, long first, int n, float *room) const {
        if (!p.dtype && n == C && width == padded) return {to + first * width, width, N_R};
        return {room, padded, N_R};
    }

    // And from there to where they belong.
    void deliver(Result rows, const float *room, int width, long first, int n, float *to) const {
        for (int i = 0; i < n && rows.p == room; i++) write_row(room + i * rows.row, width, p.dtype, to, (first + i) * width);
    }

    // out = (phi_q S + P v) / (phi_q z + P 1); true where a query that sees keys has a denominator in range.
    bool answer(Tiles &w, const Sums &s, long head, long t, int n, bool inside, bool any) const {
        const long first = head * p.queries + t;
        Result out = result(p.out, p.e, e, first, n, w.out);
        product<false>(C, p.e, p.m, {w.phi_q, f, 1}, {s.S, e, N_R}, out);
        if (inside) product<true, LEFT_LOWER>(C, p.e, C, {w.P, 1, C}, {w.v.p, w.v.row, N_R}, out);
        float inverse[C];
        for (int i = 0; i < C; i += LANES) {
            vec rows[LANES];
            for (int x = 0; x < LANES; x++) {
                rows[x] = vec{};
                for (int j = 0; j < m; j += LANES) rows[x] += load(w.phi_q + (i + x) * f + j) * load(s.z + j);
            }
            vec den = sums(rows);
            for (int j = 0; j < i + LANES && inside; j++) den += load(w.P + j * C + i);
            store(w.den + i, den);
            store(inverse + i, den == vec{} ? vec{} : 1.0f / den);
        }
        copy(p.den + first, w.den, n);
        for (int i = 0; i < n; i++) scale(out.p + i * out.row, out.p + i * out.row, inverse[i], p.e);
        deliver(out, w.out, p.e, first, n, p.out);
        bool fine = true;
        for (int i = 0; i < n && exponential(); i++) {
            any = any || (inside && seen(head, t + i));
            if (any && w.den[i] <= SMALLEST) fine = false;
        }
        return fine;
    }

    // g / den, and minus its product with out: the gradients of numerators and denominators.
    void gradients(Tiles &w, long head, long t, int n) const {
        const long first = head * p.queries + t;
        float inverse[C] = {};
        copy(inverse, p.den + first, n);
        for (int i = 0; i < C; i += LANES) {
            vec den = load(inverse + i);
            store(inverse + i, den == vec{} ? vec{} : 1.0f / den);
        }
        for (int i = 0; i < n; i++) {
            float *g = w.g + (long)i * e;
            const long at = (first + i) * p.e;
            scale(g, row_of(p.grad, at, p.e, p.dtype, g), inverse[i], p.e);
            std::fill(g + p.e, g + e, 0.0f);
            w.gd[i] = -dot(g, row_of(p.out, at, p.e, p.dtype, w.out), p.e);
        }
        std::memset(w.g + (long)n * e, 0, sizeof(float) * (C - n) * e);
        std::fill(w.gd + n, w.gd + C, 0.0f);
    }

    // From the gradient of features, `change` and for each token `weight` times z, to that of queries or keys, which
    // is to be delivered: dx = phi'(x)^T change.
    Result pull_back(Tiles &w, const float *phi, const float *z, const float *weight, long first, int n, float *to) const {
        Result own = result(to, p.d, d, first, n, w.out);
        for (int i = 0; i < C; i++) {
            float *rows = p.kind == FAVOR ? w.change + i * f : own.p + i * own.row;
            for (int j = 0; j < m; j += LANES) {
                vec y = load(phi + i * f + j), x = load(w.change + i * f + j) + load(z + j) * weight[i];
                bool linear = p.kind == FEATURES;
                store(rows + j, linear ? x : p.kind == ELU ? (y < 1.0f ? x * y : x) : x * y);
            }
        }
        if (p.kind == FAVOR) product<false>(C, p.d, p.m, {w.change, f, 1}, {weights, d, N_R}, own);
        return own;
    }
};

}  // namespace
