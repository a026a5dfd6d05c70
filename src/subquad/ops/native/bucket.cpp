// Softmax attention within buckets of sorted tokens, in rounds: a panel of queries at a time, over the keys of its
// chunk and of the one before.
//
// Rows are gathered into tiles, each chunk's once a round. Scores lie transposed (key by query), so that masks, maxima
// and sums run along queries. What a query has got so far goes from round to round with the top of its scores
// and the sum of its weights; the backward pass makes the weights again from the log of their sum.

#include "kernels.h"
#include "product.h"

#include <vector>

namespace {

constexpr float ALONE = -1e5f;    // the score of a query with itself, where it should see itself only for want of others
constexpr float NOTHING = -1e30f; // the top of no scores
constexpr int32_t NOWHERE = -(1 << 30);  // a mark that is near to none
constexpr int V = N_R / LANES;    // vectors of a panel

typedef int32_t ivec_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE ivec whole(const int32_t *p) { return *(const ivec_anywhere *)p; }

// A mark is near another if their difference is 0 or 1.
INLINE ivec near(ivec mark, int32_t other) { return (ivec)((uvec)(mark - other) <= (uvec){} + 1); }

// Rows in any order are far from one another: asked for early, they come while something else is computed.
INLINE void expect(const float *row, int width) {
    for (int i = 0; i < width; i += 16) __builtin_prefetch(row + i, 0, 2);
}

// Keys and queries of two chunks, the one before in front, and what belongs to a panel of queries.
struct Tiles {
    Scratch k, v, q, qT, P, out, top, total, dk, dv, g, gT, dP, delta;
    std::vector<int32_t> token, marks, seen;  // of each place; by round and place; by key and query
    Tiles(int d, int e, int size, int rounds, bool backward)
        : k(2 * size * d), v(2 * size * e), q(N_R * d), qT(N_R * d), P(2 * size * N_R), out(N_R * std::max(d, e)), top(N_R),
          total(N_R), dk(backward ? 2 * size * d : 1), dv(backward ? 2 * size * e : 1), g(N_R * e), gT(N_R * e),
          dP(backward ? 2 * size * N_R : 1), delta(N_R),
          token(2 * size + N_R), marks(rounds * (2 * size + N_R)),
          seen(2 * size * N_R) {}
};

struct Panel {
    int at, n;        // its first query, among the places of two chunks; its queries
    int first, keys;  // the keys that any of its queries sees
};

struct Kernel {
    const Bucketed &p;
    int d, e, c, places;
    long heads, chunks;
    explicit Kernel(const Bucketed &p)
        : p(p), d(round_up(p.d, N_R)), e(round_up(p.e, N_R)), c(p.size), places(2 * c + N_R), heads(p.batch * p.heads),
          chunks((p.length + c - 1) / c) {}

    const float *row(const float *from, const int64_t *stride, long head, long token) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + token * stride[2];
    }

    int filled(long chunk) const { return (int)std::min<long>(c, p.length - chunk * c); }

    // A chunk's tokens, with their marks of this round and of those before, keys and values, from place c.
    void take(Tiles &w, long head, int round, long chunk) const {
        const int64_t *order = p.order + (head * p.rounds + round) * p.length + chunk * c;
        for (int i = 0; i < filled(chunk); i++) {
            long token = w.token[c + i] = (int32_t)order[i];
            std::memcpy(w.k + (c + i) * d, row(p.k, p.k_stride, head, token), sizeof(float) * p.d);
            std::memcpy(w.v + (c + i) * e, row(p.v, p.v_stride, head, token), sizeof(float) * p.e);
        }
        for (int r = 0; r <= round; r++) {
            const int32_t *marks = p.marks + (head * p.rounds + r) * p.length;
            int32_t *to = w.marks.data() + r * places + c;
            for (int i = 0; i < filled(chunk); i++) to[i] = marks[w.token[c + i]];
            std::fill(to + filled(chunk), to + c + N_R, NOWHERE);
        }
    }

    // The rows that the chunk will take, and those that its queries will write.
    void expect_rows(long head, int round, long chunk) const {
        const int64_t *order = p.order + (head * p.rounds + round) * p.length + chunk * c;
        for (int i = 0; chunk < chunks && i < filled(chunk); i++) {
            expect(row(p.k, p.k_stride, head, order[i]), p.d);
            expect(row(p.v, p.v_stride, head, order[i]), p.e);
            expect(row(p.q, p.q_stride, head, order[i]), p.d);
            expect(p.out + (head * p.length + order[i]) * p.e, p.e);
        }
    }

    // The chunk at place c becomes the one before.
    void move(Tiles &w, int round) const {
        ahead(w.k.p, d), ahead(w.v.p, e), ahead(w.token.data(), 1);
        for (int r = 0; r <= round; r++) ahead(w.marks.data() + r * places, 1);
        if (p.grad) ahead(w.dk.p, d), ahead(w.dv.p, e), clear(w, c);
    }

    template <class T>
    void ahead(T *x, int width) const { std::memcpy(x, x + c * width, sizeof(T) * c * width); }

    // No gradients, of the keys and values of a chunk.
    void clear(Tiles &w, int place) const {
        std::memset(w.dk + place * d, 0, sizeof(float) * c * d);
        std::memset(w.dv + place * e, 0, sizeof(float) * c * e);
    }

    // Which keys the queries from place c + start see.
    Panel look(Tiles &w, int round, long chunk, int start) const {
        Panel b = {c + start, std::min(N_R, filled(chunk) - start), 0, 0};
        const int32_t *marks = w.marks.data() + round * places, *own = marks + b.at;
        int32_t least = *std::min_element(own, own + b.n) - 1, most = *std::max_element(own, own + b.n);
        int first = p.band ? start + 1 : 0, last = p.band ? b.at + b.n : c + filled(chunk);
        if (chunk == 0) first = c;
        while (first < last && (marks[first] < least || marks[first] > most)) first++;
        while (first < last && (marks[last - 1] < least || marks[last - 1] > most)) last--;
        b.first = first, b.keys = last - first;
        for (int i = 0; i < N_R; i += LANES) {
            ivec place, mine = whole(own + i), token = whole(w.token.data() + b.at + i);
            for (int x = 0; x < LANES; x++) place[x] = b.at + i + x;
            for (int j = first; j < last; j++) {
                ivec seen = near(mine, marks[j]);
                if (!p.repeats)
                    for (int r = 0; r < round; r++) {
                        const int32_t *earlier = w.marks.data() + r * places;
                        seen &= ~near(whole(earlier + b.at + i), earlier[j]);
                    }
                if (p.causal) seen &= token >= w.token[j];
                if (p.band) seen &= (ivec)((uvec)(place - j) < (uvec){} + (uint32_t)c);
                *(ivec_anywhere *)(w.seen.data() + (j - first) * N_R + i) = seen;
            }
        }
        return b;
    }

    void rows(const Tiles &w, const Panel &b, const float *from, const int64_t *stride, long head, int width, float *to, int ld) const {
        for (int i = 0; i < N_R; i++) {
            if (i < b.n) std::memcpy(to + i * ld, row(from, stride, head, w.token[b.at + i]), sizeof(float) * width);
            else std::memset(to + i * ld, 0, sizeof(float) * ld);
        }
    }

    // The scores of a panel, with -inf where a query does not see a key.
    void scores(Tiles &w, long head, const Panel &b) const {
        rows(w, b, p.q, p.q_stride, head, p.d, w.q, d);
        for (int i = 0; i < N_R * d; i += LANES) store(w.q + i, load(w.q + i) * p.scale);
        transpose(w.q, N_R, d, w.qT);
        product<false>(b.keys, N_R, p.d, {w.k + b.first * d, d, 1}, {w.qT, N_R, N_R}, {w.P, N_R, N_R});
        if (p.alone) itself(b, w.P, ALONE);
        for (int i = 0; i < b.keys * N_R; i += LANES)
            store(w.P + i, whole(w.seen.data() + i) ? load(w.P + i) : all(-INFINITY));
    }

    // Fill in what a panel's queries have with themselves.
    void itself(const Panel &b, float *x, float value) const {
        for (int i = 0; i < b.n; i++) {
            int j = b.at + i - b.first;
            if (j >= 0 && j < b.keys) x[j * N_R + i] = value;
        }
    }

    void forward(Tiles &w, float *totals, long head, const Panel &b) const {
        float *tops = p.lse + head * p.length, *outs = p.out + head * p.length * p.e;
        totals += head * p.length;
        scores(w, head, b);
        for (int i = 0; i < N_R; i++) w.top[i] = i < b.n ? tops[w.token[b.at + i]] : NOTHING;
        for (int i = 0; i < N_R; i += LANES) {
            vec before = load(w.top + i), top = before, total = vec{};
            for (int j = 0; j < b.keys; j++) top = greater(top, load(w.P + j * N_R + i));
            for (int j = 0; j < b.keys; j++) {
                vec x = exp(load(w.P + j * N_R + i) - top);
                total += x;
                store(w.P + j * N_R + i, x);
            }
            for (int x = i; x < std::min(i + LANES, b.n); x++) tops[w.token[b.at + x]] = top[x - i];
            store(w.top + i, exp(before - top));
            store(w.total + i, total);
        }
        product<false>(N_R, p.e, b.keys, {w.P, 1, N_R}, {w.v + b.first * e, e, N_R}, {w.out, e, N_R});
        for (int i = 0; i < b.n; i++) {
            long token = w.token[b.at + i];
            totals[token] = totals[token] * w.top[i] + w.total[i];
            float *out = outs + token * p.e;
            blend(out, out, w.top[i], w.out + i * e, 1, p.e);
        }
    }

    // Outputs and the log of the sum of weights, after the last round.
    void finish(const float *totals, long here) const {
        scale(p.out + here * p.e, p.out + here * p.e, totals[here] > 0 ? 1 / totals[here] : 0, p.e);
        p.lse[here] += std::log(totals[here]);
    }

    void backward(Tiles &w, long head, const Panel &b) const {
        const int64_t stride[3] = {p.heads * p.length * p.e, p.length * p.e, p.e};
        scores(w, head, b);
        rows(w, b, p.grad, stride, head, p.e, w.g, e);
        transpose(w.g, N_R, e, w.gT);
        for (int i = 0; i < N_R; i++) {
            long here = head * p.length + (i < b.n ? w.token[b.at + i] : 0);
            w.top[i] = i < b.n ? p.lse[here] : 0;
            w.delta[i] = i < b.n ? dot(w.g + i * e, p.out + here * p.e, p.e) : 0;
        }
        product<false>(b.keys, N_R, p.e, {w.v + b.first * e, e, 1}, {w.gT, N_R, N_R}, {w.dP, N_R, N_R});
        for (int i = 0; i < N_R; i += LANES)
            for (int j = 0; j < b.keys; j++) {
                vec weight = exp(load(w.P + j * N_R + i) - load(w.top + i));
                store(w.P + j * N_R + i, weight);
                store(w.dP + j * N_R + i, weight * (load(w.dP + j * N_R + i) - load(w.delta + i)));
            }
        if (p.alone) itself(b, w.dP, 0);  // its score is a constant
        product<false>(N_R, p.d, b.keys, {w.dP, 1, N_R}, {w.k + b.first * d, d, N_R}, {w.out, d, N_R});
        for (int i = 0; i < b.n; i++) {
            float *dq = p.dq + (head * p.length + w.token[b.at + i]) * p.d;
            blend(dq, dq, 1, w.out + i * d, p.scale, p.d);
        }
        product<true>(b.keys, p.d, N_R, {w.dP, N_R, 1}, {w.q, d, N_R}, {w.dk + b.first * d, d, N_R});
        product<true>(b.keys, p.e, N_R, {w.P, N_R, 1}, {w.g, e, N_R}, {w.dv + b.first * e, e, N_R});
    }

    // The gradients of a chunk's keys and values go where they belong.
    void give(Tiles &w, long head, int place, int n) const {
        for (int i = place; i < place + n; i++) {
            long here = head * p.length + w.token[i];
            blend(p.dk + here * p.d, p.dk + here * p.d, 1, w.dk + i * d, 1, p.d);
            blend(p.dv + here * p.e, p.dv + here * p.e, 1, w.dv + i * e, 1, p.e);
        }
    }

    // One round of a head's chunks.
    void pass(Tiles &w, float *totals, long head, int round, long from, long to) const {
        if (from > 0) take(w, head, round, from - 1);
        for (long chunk = from; chunk < to; chunk++) {
            if (chunk > 0) move(w, round);
            take(w, head, round, chunk);
            expect_rows(head, round, chunk + 1);
            for (int start = 0; start < filled(chunk); start += N_R) {
                Panel b = look(w, round, chunk, start);
                if (b.keys > 0 && p.grad) backward(w, head, b);
                if (b.keys > 0 && !p.grad) forward(w, totals, head, b);
            }
            if (p.grad && chunk > 0) give(w, head, 0, c);
        }
        if (p.grad) give(w, head, c, filled(to - 1)), clear(w, c);
    }

    // Heads, or parts of them, on all threads, round after round. A part adds to the last chunk of the part before,
    // so even parts go before odd ones.
    void everywhere(float *totals) const {
        long parts = heads >= p.threads ? 1 : std::min<long>(2 * p.threads, chunks);
#pragma omp parallel num_threads(p.threads)
        {
            Tiles w(d, e, c, p.rounds, p.grad);
            for (int round = 0; round < p.rounds; round++)
                for (long odd = 0; odd < std::min(parts, 2L); odd++) {
                    long turns = (parts - odd + 1) / 2;
#pragma omp for schedule(static)
                    for (long i = 0; i < heads * turns; i++) {
                        long part = i % turns * 2 + odd;
                        pass(w, totals, i / turns, round, chunks * part / parts, chunks * (part + 1) / parts);
                    }
                }
            if (!p.grad)
#pragma omp for schedule(static)
                for (long i = 0; i < heads * p.length; i++) finish(totals, i);
        }
    }
};

}  // namespace

extern "C" int bucketed(const Bucketed *call) {
    Kernel k(*call);
    Scratch totals(k.heads * call->length);
    std::fill(call->lse, call->lse + k.heads * call->length, NOTHING);
    k.everywhere(totals);
    return 0;
}

extern "C" int bucketed_backward(const Bucketed *call) {
    Kernel(*call).everywhere(nullptr);
    return 0;
}
