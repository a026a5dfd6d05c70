// Softmax attention over tiles: some queries beside some keys, merged into outputs over other keys.
//
// C queries of a tile at a time go through the keys that any of them sees, as many at once as fit in cache, under
// a maximum that grows. Keys that lie side by side are read where they are, others are gathered. As in window.cpp
// scores lie transposed (key by query), and the backward pass makes the weights again from lse.

#include <vector>

#include "kernels.h"
#include "product.h"

namespace {

constexpr int C = 64;
constexpr int KEYS = 512;  // that are taken at once
constexpr int SHORT = 16;  // fewer keys side by side are gathered: short products are slow

struct Key {
    long at;     // its token
    int column;  // of `seen`
};

// Keys that lie side by side, or were gathered.
struct Run {
    long first, n;  // in the chunk
    const float *k, *v;
    long k_row, v_row;
};

struct Space {
    Scratch q, qT, out, P, k, v, g, gT, dP, dk, dv, top, total, delta;
    std::vector<Key> keys;
    std::vector<Run> runs;
    std::vector<uint8_t> any, every;
    std::vector<long> at = std::vector<long>(C);  // the queries' tokens, -1: none
    Space(int d, int e, int columns, bool backward)
        : q(C * d), qT(C * d), out(C * std::max(d, e)), P(KEYS * C), k(KEYS * d), v(KEYS * e), g(C * e), gT(C * e),
          dP(backward ? KEYS * C : 1), dk(backward ? KEYS * d : 1), dv(backward ? KEYS * e : 1), top(C), total(C),
          delta(C), any(columns), every(columns) {}
};

// to += factor x
INLINE void take_in(float *to, float factor, const float *x, int n) { blend(to, to, 1, x, factor, n); }

struct Kernel {
    const Tiled &p;
    int d, e;
    explicit Kernel(const Tiled &p) : p(p), d(round_up(p.d, N_R)), e(round_up(p.e, N_R)) {}

    long length(long head) const { return p.lengths ? p.lengths[head / p.heads] : p.length; }

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    // The tokens of up to C queries of a tile, from its query `start` on. Gives whether there is any.
    bool queries(Space &w, long head, long tile, int start, int count) const {
        bool some = false;
        const int64_t *places = p.queries ? p.queries + head / p.heads * p.queries_batch + tile * p.width : nullptr;
        for (int i = 0; i < C; i++) {
            long t = i >= count ? -1 : places ? places[start + i] : tile * p.width + start + i;
            w.at[i] = t < length(head) ? t : -1;
            some |= w.at[i] >= 0;
        }
        return some;
    }

    const uint8_t *seen(long head, long tile, int query) const {
        return p.seen + head / p.heads * p.seen_batch + (tile * p.rows + query / (p.width / p.rows)) * p.columns;
    }

    // The keys that any of these queries sees.
    void keys(Space &w, long head, long tile, int start, int count) const {
        std::fill(w.any.begin(), w.any.end(), 0), std::fill(w.every.begin(), w.every.end(), 1);
        for (int i = start; i < start + count; i += p.width / p.rows - i % (p.width / p.rows)) {
            const uint8_t *pairs = seen(head, tile, i);
            for (int j = 0; j < p.columns; j++) w.any[j] |= pairs[j], w.every[j] &= pairs[j];
        }
        const int64_t *units = p.keys + head / p.heads * p.keys_batch + tile * p.units;
        int each = p.units * p.unit / p.columns;
        w.keys.clear();
        for (int j = 0; j < p.units * p.unit; j++) {
            long at = units[j / p.unit] * p.unit + j % p.unit;
            if (w.any[j / each] && at >= 0 && at < length(head)) w.keys.push_back({at, j / each});
        }
    }

    // Where keys `from` to `to` of the list are.
    void find(Space &w, long head, long from, long to) const {
        w.runs.clear();
        for (long j = from; j < to;) {
            long next = j + 1;
            while (next < to && w.keys[next].at == w.keys[next - 1].at + 1) next++;
            const float *k = row(p.k, p.k_stride, head, w.keys[j].at), *v = row(p.v, p.v_stride, head, w.keys[j].at);
            w.runs.push_back({j - from, next - j, k, v, (long)p.k_stride[2], (long)p.v_stride[2]});
            j = next;
        }
        if (p.d == d && p.e == e && to - from >= SHORT * (long)w.runs.size()) return;
        w.runs.assign(1, {0, to - from, w.k, w.v, d, e});
        for (long j = from; j < to; j++) {
            copy(row(p.k, p.k_stride, head, w.keys[j].at), p.d, w.k + (j - from) * d, d);
            copy(row(p.v, p.v_stride, head, w.keys[j].at), p.e, w.v + (j - from) * e, e);
        }
    }

    static void copy(const float *from, int width, float *to, int ld) {
        std::memcpy(to, from, sizeof(float) * width);
        std::memset(to + width, 0, sizeof(float) * (ld - width));
    }

    // Queries times the scale, both ways round.
    void load_queries(Space &w, long head) const {
        std::memset(w.q.p, 0, sizeof(float) * C * d);
        for (int i = 0; i < C; i++)
            if (w.at[i] >= 0) {
                const float *q = row(p.q, p.q_stride, head, w.at[i]);
                for (int j = 0; j < p.d; j++) w.q[i * d + j] = q[j] * p.scale;
            }
        transpose(w.q, C, d, w.qT);
    }

    // The scores of keys `from` on, with -inf where a query does not see a key.
    void scores(Space &w, long head, long tile, int start, int count, long from) const {
        for (const Run &run : w.runs)
            product<false>((int)run.n, round_up(count, N_R), p.d, {run.k, run.k_row, 1}, {w.qT, C, N_R},
                           {w.P + run.first * C, C, N_R});
        long to = from + w.runs.back().first + w.runs.back().n;
        for (long j = from; j < to; j++) {
            if (w.every[w.keys[j].column]) continue;
            float *P = w.P + (j - from) * C;
            for (int i = 0, each = p.width / p.rows; i < count;) {
                bool sees = seen(head, tile, start + i)[w.keys[j].column];
                for (int next = std::min(count, (start + i) / each * each + each - start); i < next; i++)
                    if (!sees) P[i] = -INFINITY;
            }
        }
    }

    void forward(Space &w, long head, long tile, int start) const {
        int count = std::min(C, p.width - start), wide = round_up(count, N_R);
        if (!queries(w, head, tile, start, count)) return;
        keys(w, head, tile, start, count);
        if (w.keys.empty()) return;
        load_queries(w, head);
        begin(w, head);
        for (long from = 0; from < (long)w.keys.size(); from += KEYS) {
            long n = std::min<long>(KEYS, w.keys.size() - from);
            find(w, head, from, from + n);
            scores(w, head, tile, start, count, from);
            for (int i = 0; i < wide; i += LANES) soften(w, n, i);
            for (const Run &run : w.runs)
                product<true>(wide, p.e, (int)run.n, {w.P + run.first * C, 1, C}, {run.v, run.v_row, N_R}, {w.out, e, N_R});
        }
        for (int i = 0; i < count; i++) {
            if (w.at[i] < 0 || w.total[i] == 0) continue;
            long here = head * p.length + w.at[i];
            for (int j = 0; j < p.e; j++) p.out[here * p.e + j] = w.out[i * e + j] / w.total[i];
            p.lse[here] = w.top[i] + std::log(w.total[i]);
        }
    }

    // The sums so far: outputs over other keys count as one key, whose score is their lse.
    void begin(Space &w, long head) const {
        for (int i = 0; i < C; i++) {
            long here = head * p.length + w.at[i];
            bool begun = w.at[i] >= 0 && p.lse[here] > -INFINITY;
            w.top[i] = begun ? p.lse[here] : -1e30f, w.total[i] = begun;
            if (begun) copy(p.out + here * p.e, p.e, w.out + i * e, e);
            else std::memset(w.out + i * e, 0, sizeof(float) * e);
        }
    }

    // Scores of LANES queries become weights under a new maximum.
    void soften(Space &w, long n, int i) const {
        vec top = load(w.top + i), before = top;
        for (long j = 0; j < n; j++) top = greater(top, load(w.P + j * C + i));
        vec change = exp(before - top), total = load(w.total + i) * change;
        for (long j = 0; j < n; j++) {
            vec x = exp(load(w.P + j * C + i) - top);
            total += x;
            store(w.P + j * C + i, x);
        }
        store(w.top + i, top), store(w.total + i, total);
        for (int x = 0; x < LANES; x++) {
            float *out = w.out + (i + x) * e;
            for (int j = 0; change[x] != 1 && j < e; j += LANES) store(out + j, load(out + j) * change[x]);
        }
    }

    void backward(Space &w, long head, long tile, int start) const {
        int count = std::min(C, p.width - start), wide = round_up(count, N_R);
        if (!queries(w, head, tile, start, count)) return;
        keys(w, head, tile, start, count);
        if (w.keys.empty()) return;
        load_queries(w, head);
        std::memset(w.g.p, 0, sizeof(float) * C * e), std::memset(w.out.p, 0, sizeof(float) * C * d);
        for (int i = 0; i < C; i++) {
            long here = head * p.length + w.at[i];
            bool sees = w.at[i] >= 0 && p.lse[here] > -INFINITY;
            w.top[i] = sees ? p.lse[here] : INFINITY, w.delta[i] = sees ? p.delta[here] : 0;
            if (sees) copy(p.grad + here * p.e, p.e, w.g + i * e, e);
        }
        transpose(w.g, C, e, w.gT);
        for (long from = 0; from < (long)w.keys.size(); from += KEYS) {
            long n = std::min<long>(KEYS, w.keys.size() - from);
            find(w, head, from, from + n);
            scores(w, head, tile, start, count, from);
            for (const Run &run : w.runs)
                product<false>((int)run.n, wide, p.e, {run.v, run.v_row, 1}, {w.gT, C, N_R}, {w.dP + run.first * C, C, N_R});
            for (long j = 0; j < n; j++)
                for (int i = 0; i < wide; i += LANES) {
                    vec weight = exp(load(w.P + j * C + i) - load(w.top + i));
                    store(w.P + j * C + i, weight);
                    store(w.dP + j * C + i, weight * (load(w.dP + j * C + i) - load(w.delta + i)));
                }
            for (const Run &run : w.runs) {
                product<true>(wide, p.d, (int)run.n, {w.dP + run.first * C, 1, C}, {run.k, run.k_row, N_R}, {w.out, d, N_R});
                long key = head * p.length + w.keys[from + run.first].at;
                add(run, wide, w.dP, w.q, d, run.k == w.k.p ? nullptr : p.dk + key * p.d, w.dk);
                add(run, wide, w.P, w.g, e, run.v == w.v.p ? nullptr : p.dv + key * p.e, w.dv);
            }
            if (w.runs[0].k == w.k.p)
                for (long j = 0; j < n; j++) {
                    long key = head * p.length + w.keys[from + j].at;
                    take_in(p.dk + key * p.d, 1, w.dk + j * d, p.d);
                    take_in(p.dv + key * p.e, 1, w.dv + j * e, p.e);
                }
        }
        for (int i = 0; i < count; i++)
            if (w.at[i] >= 0) take_in(p.dq + (head * p.length + w.at[i]) * p.d, p.scale, w.out + i * d, p.d);
    }

    // One query alone beside a few keys, without products of matrices.
    void single(Space &w, long head, long tile, bool back) const {
        if (!queries(w, head, tile, 0, 1)) return;
        keys(w, head, tile, 0, 1);
        long here = head * p.length + w.at[0], n = w.keys.size();
        if (n == 0) return;
        const float *q = row(p.q, p.q_stride, head, w.at[0]);
        float before = p.lse[here], top = before;
        for (long j = 0; j < n; j++) {
            w.P[j] = dot(q, row(p.k, p.k_stride, head, w.keys[j].at), p.d) * p.scale;
            top = std::max(top, w.P[j]);
        }
        if (back) return pull(w, head, n, q);
        float *out = p.out + here * p.e, total = std::exp(before - top), old = total;
        for (long j = 0; j < n; j++) total += w.P[j] = std::exp(w.P[j] - top);
        for (int i = 0; i < p.e; i++) out[i] *= old / total;
        for (long j = 0; j < n; j++) take_in(out, w.P[j] / total, row(p.v, p.v_stride, head, w.keys[j].at), p.e);
        p.lse[here] = top + std::log(total);
    }

    void pull(Space &w, long head, long n, const float *q) const {
        long here = head * p.length + w.at[0];
        const float *grad = p.grad + here * p.e;
        for (long j = 0; j < n; j++) {
            long t = w.keys[j].at, key = head * p.length + t;
            float weight = std::exp(w.P[j] - p.lse[here]);
            float change = weight * p.scale * (dot(grad, row(p.v, p.v_stride, head, t), p.e) - p.delta[here]);
            take_in(p.dq + here * p.d, change, row(p.k, p.k_stride, head, t), p.d);
            take_in(p.dk + key * p.d, change, q, p.d);
            take_in(p.dv + key * p.e, weight, grad, p.e);
        }
    }

    bool alone() const { return p.width == 1 && p.units * p.unit <= KEYS; }

    // weights x, added to `to` or, for keys that were gathered, written to `between`
    static void add(const Run &run, int queries, const float *weights, const float *x, int ld, float *to, float *between) {
        if (to) product<true>((int)run.n, ld, queries, {weights + run.first * C, C, 1}, {x, ld, N_R}, {to, ld, N_R});
        else product<false>((int)run.n, ld, queries, {weights, C, 1}, {x, ld, N_R}, {between, ld, N_R});
    }
};

}  // namespace

extern "C" int tiled(const Tiled *call) {
    Kernel k(*call);
    long heads = call->batch * call->heads;
#pragma omp parallel num_threads(call->threads)
    {
        Space w(k.d, k.e, call->columns, false);
#pragma omp for schedule(dynamic, k.alone() ? 64 : 1)
        for (long i = 0; i < heads * call->tiles; i++)
            if (k.alone()) k.single(w, i / call->tiles, i % call->tiles, false);
            else
                for (int start = 0; start < call->width; start += C) k.forward(w, i / call->tiles, i % call->tiles, start);
    }
    return 0;
}

extern "C" int tiled_backward(const Tiled *call) {
    Kernel k(*call);
    long heads = call->batch * call->heads;
#pragma omp parallel num_threads(call->threads)
    {
        Space w(k.d, k.e, call->columns, true);
#pragma omp for schedule(dynamic)
        for (long head = 0; head < heads; head++)  // whose tiles add to the same keys
            for (long tile = 0; tile < call->tiles; tile++)
                if (k.alone()) k.single(w, head, tile, true);
                else
                    for (int start = 0; start < call->width; start += C) k.backward(w, head, tile, start);
    }
    return 0;
}
