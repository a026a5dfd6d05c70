// Softmax attention within a window, C queries at a time, over the keys that any of them sees.
//
// Scores lie transposed (key by query): keys and values are then read where they are, maxima and sums over keys
// run along queries, and nothing but a block of queries is ever transposed. The backward pass makes the weights
// again from the log of their sum.

#include "kernels.h"
#include "product.h"

namespace {

constexpr int C = 64;
constexpr int V = N_R / LANES;  // vectors of a panel

struct Tiles {
    int d, e;
    long most;  // keys that a block of queries can see, rounded up
    Scratch q, qT, out, P, k, v, g, gT, dP, delta, lse;
    Tiles(int d, int e, long most, bool backward)
        : d(d), e(e), most(most), q(C * d), qT(C * d), out(C * std::max(d, e)), P(most * C), k(most * d), v(most * e),
          g(C * e), gT(C * e), dP(backward ? most * C : 1), delta(C), lse(C) {}
};

struct Block {
    long first, last;  // keys
    int n;             // queries
};

struct Kernel {
    const Window &p;
    int d, e;
    long heads, most;
    explicit Kernel(const Window &p)
        : p(p), d(round_up(p.d, N_R)), e(round_up(p.e, N_R)), heads(p.batch * p.heads),
          most((std::min(p.left, p.length) + std::min(p.right, p.length) + 2 * C) / C * C) {}

    long length(long head) const { return p.lengths ? p.lengths[head / p.heads] : p.length; }

    Block block(long head, long t) const {
        long n = std::min<long>(C, length(head) - t);
        return {std::max(0L, t - p.left), std::min(length(head), t + n + p.right), (int)std::max(0L, n)};
    }

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    static void rows(const float *from, long stride, long n, int width, float *to, int ld, long all) {
        for (long i = 0; i < n; i++) {
            std::memcpy(to + i * ld, from + i * stride, sizeof(float) * width);
            std::memset(to + i * ld + width, 0, sizeof(float) * (ld - width));
        }
        if (all > n) std::memset(to + n * ld, 0, sizeof(float) * (all - n) * ld);
    }

    // Rows as the right side of a product: where they are, if their width fills whole panels.
    Right right(const float *from, const int64_t *stride, long head, long t, long n, int width, float *to, int ld) const {
        const float *at = row(from, stride, head, t);
        if (width == ld) return {at, (long)stride[2], N_R};
        rows(at, stride[2], n, width, to, ld, n);
        return {to, ld, N_R};
    }

    Left left(const float *from, const int64_t *stride, long head, long t) const {
        return {row(from, stride, head, t), (long)stride[2], 1};
    }

    // Which of a block's queries see key j, as a range.
    void seen(long j, long t, int n, int &from, int &to) const {
        from = (int)std::max(0L, j - p.right - t);
        to = (int)std::min<long>(n, j + p.left - t + 1);
    }

    // The keys, counted from the block's first, that a panel of its queries sees; none if it has no query.
    void seen(const Block &b, long t, int panel, long &from, long &keys) const {
        long first = t + panel, last = std::min<long>(first + N_R, t + b.n) - 1;
        from = std::max(0L, first - p.left - b.first);
        keys = last < first ? 0 : std::min(b.last, last + p.right + 1) - b.first - from;
    }

    // Of the keys from one on, those that each query from one on sees.
    Band keys_of_query(long query, long key) const { return {query - p.left - key, query + p.right - key}; }

    // The scores of a block, with -inf where a query does not see a key.
    void scores(Tiles &w, long head, long t, const Block &b) const {
        rows(row(p.q, p.q_stride, head, t), p.q_stride[2], b.n, p.d, w.q, d, C);
        for (long i = 0; i < (long)C * d; i += LANES) store(w.q + i, load(w.q + i) * p.scale);
        transpose(w.q, C, d, w.qT);
        for (int panel = 0; panel < C; panel += N_R) {
            long start, keys;
            seen(b, t, panel, start, keys);
            float *P = w.P + start * C + panel;
            product<false>((int)keys, N_R, p.d, left(p.k, p.k_stride, head, b.first + start), {w.qT + panel, C, N_R}, {P, C, N_R});
            for (long j = 0; j < keys; j++) {
                int from, to;
                seen(b.first + start + j, t + panel, b.n - panel, from, to);
                if (from > 0) std::fill(P + j * C, P + j * C + std::min(from, N_R), -INFINITY);
                if (to < N_R) std::fill(P + j * C + std::max(to, 0), P + j * C + N_R, -INFINITY);
            }
        }
    }

    void forward(Tiles &w, long head, long t) const {
        Block b = block(head, t);
        long keys = b.last - b.first, here = head * p.length + t;
        if (b.n > 0) {
            scores(w, head, t, b);
            vec top[C / LANES], total[C / LANES];
            for (int i = 0; i < C / LANES; i++) top[i] = all(-1e30f), total[i] = vec{};
            Right values = right(p.v, p.v_stride, head, b.first, keys, p.e, w.v, e);
            for (int panel = 0; panel < C; panel += N_R) {
                long start, own;
                seen(b, t, panel, start, own);
                float *P = w.P + start * C + panel;
                vec *above = top + panel / LANES, *sums = total + panel / LANES;
                for (long j = 0; j < own; j++)
                    for (int i = 0; i < V; i++) above[i] = greater(above[i], load(P + j * C + i * LANES));
                for (long j = 0; j < own; j++)
                    for (int i = 0; i < V; i++) {
                        vec x = exp(load(P + j * C + i * LANES) - above[i]);
                        sums[i] += x;
                        store(P + j * C + i * LANES, x);
                    }
                product<false, LEFT_BAND>(N_R, p.e, (int)own, {P, 1, C}, {values.p + start * values.row, values.row, N_R},
                                          {w.out + panel * e, e, N_R}, keys_of_query(t + panel, b.first + start));
            }
            for (int i = 0; i < b.n; i++) {
                float s = total[i / LANES][i % LANES];
                scale(p.out + (here + i) * p.e, w.out + i * e, 1 / s, p.e);
                p.lse[here + i] = top[i / LANES][i % LANES] + std::log(s);
            }
        }
        for (long i = b.n; i < C && t + i < p.length; i++) {  // padding
            std::fill(p.out + (here + i) * p.e, p.out + (here + i + 1) * p.e, 0.0f);
            p.lse[here + i] = -INFINITY;
        }
    }

    void backward(Tiles &w, long head, long t) const {
        Block b = block(head, t);
        long keys = b.last - b.first, here = head * p.length + t;
        for (long i = b.n; i < C && t + i < p.length; i++)
            std::fill(p.dq + (here + i) * p.d, p.dq + (here + i + 1) * p.d, 0.0f);
        if (b.n == 0) return;
        scores(w, head, t, b);
        std::memset(w.g.p, 0, sizeof(float) * C * e);
        for (int i = 0; i < C; i++) {
            w.delta[i] = 0, w.lse[i] = 0;
            if (i >= b.n) continue;
            copy(w.g + i * e, p.grad + (here + i) * p.e, p.e);
            w.delta[i] = dot(w.g + i * e, p.out + (here + i) * p.e, p.e) - (p.grad_lse ? p.grad_lse[here + i] : 0);
            w.lse[i] = p.lse[here + i];
        }
        transpose(w.g, C, e, w.gT);
        Right near = right(p.k, p.k_stride, head, b.first, keys, p.d, w.k, d);
        for (int panel = 0; panel < C; panel += N_R) {
            long start, own;
            seen(b, t, panel, start, own);
            float *P = w.P + start * C + panel, *dP = w.dP + start * C + panel;
            product<false>((int)own, N_R, p.e, left(p.v, p.v_stride, head, b.first + start), {w.gT + panel, C, N_R}, {dP, C, N_R});
            for (long j = 0; j < own; j++)
                for (int i = 0; i < N_R; i += LANES) {
                    vec weight = exp(load(P + j * C + i) - load(w.lse + panel + i));
                    store(P + j * C + i, weight);
                    store(dP + j * C + i, weight * (load(dP + j * C + i) - load(w.delta + panel + i)));
                }
            product<false, LEFT_BAND>(N_R, p.d, (int)own, {dP, 1, C}, {near.p + start * near.row, near.row, N_R},
                                      {w.out + panel * d, d, N_R}, keys_of_query(t + panel, b.first + start));
            clear(w.P, w.dP, panel, 0, start);
            clear(w.P, w.dP, panel, start + own, keys);
        }
        for (int i = 0; i < b.n; i++) scale(p.dq + (here + i) * p.d, w.out + i * d, p.scale, p.d);
        Band queries = {b.first - p.right - t, b.first + p.left - t};
        add(keys, w.dP, queries, w.q, d, p.dk + (head * p.length + b.first) * p.d, p.d, w.k);
        add(keys, w.P, queries, w.g, e, p.dv + (head * p.length + b.first) * p.e, p.e, w.v);
    }

    // Weights of keys that a panel does not see.
    static void clear(float *P, float *dP, int panel, long from, long to) {
        for (long j = from; j < to; j++) {
            std::memset(P + j * C + panel, 0, sizeof(float) * N_R);
            std::memset(dP + j * C + panel, 0, sizeof(float) * N_R);
        }
    }

    // to += weights x, straight into `to` where its width fills whole panels
    static void add(long keys, const float *weights, Band queries, const float *x, int ld, float *to, int width, float *between) {
        if (width == ld) return product<true, LEFT_BAND>((int)keys, ld, C, {weights, C, 1}, {x, ld, N_R}, {to, width, N_R}, queries);
        product<false, LEFT_BAND>((int)keys, ld, C, {weights, C, 1}, {x, ld, N_R}, {between, ld, N_R}, queries);
        for (long j = 0; j < keys; j++)
            for (int i = 0; i < width; i++) to[j * width + i] += between[j * ld + i];
    }
};

}  // namespace

extern "C" int window(const Window *given) {
    Kernel k(*given);
    long blocks = (given->length + C - 1) / C;
#pragma omp parallel num_threads(given->threads)
    {
        Tiles w(k.d, k.e, k.most, false);
#pragma omp for schedule(static)
        for (long i = 0; i < k.heads * blocks; i++) k.forward(w, i / blocks, i % blocks * C);
    }
    return 0;
}

extern "C" int window_backward(const Window *given) {
    Kernel k(*given);
    long blocks = (given->length + C - 1) / C, reach = (k.most + C - 1) / C;
    // Parts of a sequence add to keys that they share with their neighbours, so even parts go before odd ones.
    long wanted = k.heads >= given->threads ? 1 : 2 * given->threads;
    long parts = std::max(1L, std::min(wanted, blocks / (reach + 1)));
#pragma omp parallel num_threads(given->threads)
    {
        Tiles w(k.d, k.e, k.most, true);
        for (long odd = 0; odd < std::min(parts, 2L); odd++) {
            long turns = (parts - odd + 1) / 2;
#pragma omp for schedule(static)
            for (long i = 0; i < k.heads * turns; i++) {
                long part = i % turns * 2 + odd;
                for (long t = blocks * part / parts; t < blocks * (part + 1) / parts; t++) k.backward(w, i / turns, t * C);
            }
        }
    }
    return 0;
}
