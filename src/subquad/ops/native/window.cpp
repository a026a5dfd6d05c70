// Softmax attention within a window, C queries at a time, over the keys that any of them sees.
//
// Scores lie transposed (key by query): keys and values are then read where they are, maxima and sums over keys
// run along queries, and nothing but a block of queries is ever transposed. The backward pass makes the weights
// again from the log of their sum.

#include "half.h"
#include "kernels.h"
#include "product.h"

#include <vector>

namespace {

constexpr int C = 64;
constexpr int V = N_R / LANES;  // vectors of a panel

// Rows of one sequence as products want them: those that the block before had are not made again.
struct Rows {
    long head = -1, first = 0, last = 0;  // which there are
    const long room;
    const int ld;
    std::vector<float> made;
    Rows(long most, int ld) : room(most + 4 * C), ld(ld) {}

    // Those from `begin` to `end`, each made by make(row, to) once.
    template <class Make> const float *of(long of_head, long begin, long end, Make make) {
        if (made.empty()) made.resize(room * ld);
        if (of_head != head || begin < first || begin > last) head = of_head, first = last = begin;
        if (end - first > room) {
            std::memmove(made.data(), &made[(begin - first) * ld], sizeof(float) * (last - begin) * ld);
            first = begin;
        }
        for (; last < end; last++) make(last, &made[(last - first) * ld]);
        return made.data() + (begin - first) * ld;
    }
};

struct Tiles {
    int d, e;
    long most;  // keys that a block of queries can see, rounded up
    Right keys{};
    Rows k, v;
    Scratch q, qT, out, P, g, gT, dP, between, delta, lse;
    Tiles(int d, int e, long most, bool backward)
        : d(d), e(e), most(most), k(most, d), v(most, e), q(C * d), qT(C * d), out(C * std::max(d, e)), P(most * C), g(C * e),
          gT(C * e), dP(backward ? most * C : 1), between(backward ? most * std::max(d, e) : 1), delta(C), lse(C) {}
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

    int64_t place(const int64_t *stride, long head, long t) const {
        return head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    // A token as a row of `to`, with zeros up to `ld`.
    void token(const float *from, const int64_t *stride, long head, long t, int width, float *to, int ld) const {
        read_row(from, place(stride, head, t), width, p.dtype, to);
        std::memset(to + width, 0, sizeof(float) * (ld - width));
    }

    // Keys or values of a block: where they are, if their width fills whole panels.
    Right right(const float *from, const int64_t *stride, long head, const Block &b, int width, Rows &rows) const {
        if (!p.dtype && width == rows.ld) return {from + place(stride, head, b.first), (long)stride[2], N_R};
        auto make = [&](long t, float *to) { token(from, stride, head, t, width, to, rows.ld); };
        return {rows.of(head, b.first, b.last, make), rows.ld, N_R};
    }

    // Some of them as the left side.
    static Left left(Right rows, long first) { return {rows.p + first * rows.row, rows.row, 1}; }

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

    // Its keys, and the scores of a block, with -inf where a query does not see a key.
    void scores(Tiles &w, long head, long t, const Block &b) const {
        w.keys = right(p.k, p.k_stride, head, b, p.d, w.k);
        for (int i = 0; i < b.n; i++) token(p.q, p.q_stride, head, t + i, p.d, w.q + i * d, d);
        std::memset(w.q + b.n * d, 0, sizeof(float) * (C - b.n) * d);
        for (long i = 0; i < (long)C * d; i += LANES) store(w.q + i, load(w.q + i) * p.scale);
        transpose(w.q, C, d, w.qT);
        for (int panel = 0; panel < C; panel += N_R) {
            long start, keys;
            seen(b, t, panel, start, keys);
            float *P = w.P + start * C + panel;
            product<false>((int)keys, N_R, p.d, left(w.keys, start), {w.qT + panel, C, N_R}, {P, C, N_R});
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
            Right values = right(p.v, p.v_stride, head, b, p.e, w.v);
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
                scale(w.out + i * e, w.out + i * e, 1 / s, p.e);
                write_row(w.out + i * e, p.e, p.dtype, p.out, (here + i) * p.e);
                p.lse[here + i] = top[i / LANES][i % LANES] + std::log(s);
            }
        }
        for (long i = b.n; i < C && t + i < p.length; i++) {  // padding
            clear_row(p.out, (here + i) * p.e, p.e, p.dtype);
            p.lse[here + i] = -INFINITY;
        }
    }

    void backward(Tiles &w, long head, long t) const {
        Block b = block(head, t);
        long keys = b.last - b.first, here = head * p.length + t;
        for (long i = b.n; i < C && t + i < p.length; i++) clear_row(p.dq, (here + i) * p.d, p.d, p.dtype);
        if (b.n == 0) return;
        scores(w, head, t, b);
        std::memset(w.g.p, 0, sizeof(float) * C * e);
        for (int i = 0; i < C; i++) {
            w.delta[i] = 0, w.lse[i] = 0;
            if (i >= b.n) continue;
            const long at = (here + i) * p.e;
            read_row(p.grad, at, p.e, p.dtype, w.g + i * e);
            w.delta[i] = dot(w.g + i * e, row_of(p.out, at, p.e, p.dtype, w.out), p.e) - (p.grad_lse ? p.grad_lse[here + i] : 0);
            w.lse[i] = p.lse[here + i];
        }
        transpose(w.g, C, e, w.gT);
        Right values = right(p.v, p.v_stride, head, b, p.e, w.v);
        for (int panel = 0; panel < C; panel += N_R) {
            long start, own;
            seen(b, t, panel, start, own);
            float *P = w.P + start * C + panel, *dP = w.dP + start * C + panel;
            product<false>((int)own, N_R, p.e, left(values, start), {w.gT + panel, C, N_R}, {dP, C, N_R});
            for (long j = 0; j < own; j++)
                for (int i = 0; i < N_R; i += LANES) {
                    vec weight = exp(load(P + j * C + i) - load(w.lse + panel + i));
                    store(P + j * C + i, weight);
                    store(dP + j * C + i, weight * (load(dP + j * C + i) - load(w.delta + panel + i)));
                }
            product<false, LEFT_BAND>(N_R, p.d, (int)own, {dP, 1, C}, {w.keys.p + start * w.keys.row, w.keys.row, N_R},
                                      {w.out + panel * d, d, N_R}, keys_of_query(t + panel, b.first + start));
            clear(w.P, w.dP, panel, 0, start);
            clear(w.P, w.dP, panel, start + own, keys);
        }
        for (int i = 0; i < b.n; i++) {
            scale(w.out + i * d, w.out + i * d, p.scale, p.d);
            write_row(w.out + i * d, p.d, p.dtype, p.dq, (here + i) * p.d);
        }
        Band queries = {b.first - p.right - t, b.first + p.left - t};
        add(keys, w.dP, queries, w.q, d, p.dk + (head * p.length + b.first) * p.d, p.d, w.between);
        add(keys, w.P, queries, w.g, e, p.dv + (head * p.length + b.first) * p.e, p.e, w.between);
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

extern "C" int window(const Window *call) {
    Kernel k(*call);
    long blocks = (call->length + C - 1) / C;
#pragma omp parallel num_threads(call->threads)
    {
        Tiles w(k.d, k.e, k.most, false);
#pragma omp for schedule(static)
        for (long i = 0; i < k.heads * blocks; i++) k.forward(w, i / blocks, i % blocks * C);
    }
    return 0;
}

extern "C" int window_backward(const Window *call) {
    Kernel k(*call);
    long blocks = (call->length + C - 1) / C, reach = (k.most + C - 1) / C;
    // Parts of a sequence add to keys that they share with their neighbours, so even parts go before odd ones.
    long wanted = k.heads >= call->threads ? 1 : 2 * call->threads;
    long parts = std::max(1L, std::min(wanted, blocks / (reach + 1)));
#pragma omp parallel num_threads(call->threads)
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
