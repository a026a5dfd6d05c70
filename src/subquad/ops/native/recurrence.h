// What the gated recurrences share: a chunk of tokens in tiles, and what decays leave of one token at another.
//
// Every exponent is a sum of logarithms of decays, never a difference: see ops/recurrence/decay.py.

#pragma once

#include "half.h"
#include "kernels.h"
#include "product.h"
#include "rows.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

constexpr int C = 32;  // tokens of a chunk; of 64 they would multiply more among themselves

// What has nearly faded is flushed to zero: numbers below the smallest normal one cost a hundred times as much.
struct Flushed {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Flushed() { _mm_setcsr(before | 0x8040); }
    ~Flushed() { _mm_setcsr(before); }
#endif
};

// The numbers of the tokens of one vector of a chunk.
INLINE vec number(int vector) { return counted() + (float)(vector * LANES); }

// Zero in row j what stands left of column j.
static inline void keep_upper(float *tile) {
    for (int j = 0; j < C; j++, tile += C)
        for (int x = 0; x <= j / LANES; x++) store(tile + x * LANES, number(x) >= all(j) ? load(tile + x * LANES) : vec{});
}

struct Sequences {
    const Recurrence &p;
    int d, e;    // padded to whole panels
    long heads;  // of the whole batch
    Scratch scale;  // of the norm, padded
    explicit Sequences(const Recurrence &p)
        : p(p), d(round_up(p.d, N_R)), e(round_up(p.e, N_R)), heads(p.batch * p.heads), scale(e) {
        if (p.scale) copy(scale, p.scale, p.e);
    }

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    // n tokens as rows of `to`, which are `padded` wide, and zeros around them.
    void tokens(const float *from, const int64_t *stride, long head, long t, int n, int width, int padded, float *to, int dtype = FLOAT32) const {
        const int64_t first = row(from, stride, head, t) - from;
        for (int i = 0; i < n; i++) {
            read_row(from, first + i * stride[2], width, dtype, to + (long)i * padded);
            for (int c = width; c < padded; c++) to[(long)i * padded + c] = 0;
        }
        std::memset(to + (long)n * padded, 0, sizeof(float) * (C - n) * padded);
    }

    // The same where nothing is to be changed: where they lie, if they lie as the copy would.
    const float *where(const float *from, const int64_t *stride, long head, long t, int n, int width, int padded, float *room, int dtype) const {
        if (!dtype && n == C && width == padded && stride[2] == width) return row(from, stride, head, t);
        tokens(from, stride, head, t, n, width, padded, room, dtype);
        return room;
    }

    // Queries or keys, as the recurrence takes them.
    void ready(const float *from, const int64_t *stride, float scale, long head, long t, int n, float *to) const {
        const bool copied = p.dtype || p.d != d;
        if (copied) tokens(from, stride, head, t, n, p.d, d, to, p.dtype);
        const float *first = copied ? to : row(from, stride, head, t);
        const float *angles = p.turn ? row(p.turn, p.turn_stride, head, t) : nullptr;
        const int64_t apart = copied ? d : stride[2], turn_apart = p.turn_stride[2];
        for (int i = 0; i < n; i++) {
            float *at = to + (long)i * d;
            const float *x = first + i * apart;
            if (angles) turn_row<false>(x, angles + i * turn_apart, p.d / 2, scale, at);
            else if (p.unit) unit_row(x, d, p.unit, at);
            else scale_row(x, d, scale, at);
        }
        std::memset(to + (long)n * d, 0, sizeof(float) * (C - n) * d);
    }

    void queries(long head, long t, int n, float *to) const { ready(p.q, p.q_stride, p.q_scale, head, t, n, to); }
    void keys(long head, long t, int n, float *to) const { ready(p.k, p.k_stride, 1, head, t, n, to); }

    const float *values(long head, long t, int n, float *room) const {
        if (!p.swish_values) return where(p.v, p.v_stride, head, t, n, p.e, e, room, p.dtype);
        tokens(p.v, p.v_stride, head, t, n, p.e, e, room, p.dtype);
        swish_row(room, n * e, room);
        return room;
    }

    // One number a token, and zeros to the chunk's end and one beyond.
    void numbers(const float *from, const int64_t *stride, long head, long t, int n, float *to) const {
        for (int i = 0; i <= C; i++) to[i] = i < n ? *row(from, stride, head, t + i) : 0;
    }

    // To and from (heads length width), without the padding.
    void write(const float *from, int padded, long head, long t, int n, int width, float *to) const {
        for (int i = 0; i < n; i++) copy(to + (head * p.length + t + i) * width, from + (long)i * padded, width);
    }

    // Outputs, normed and gated where that is asked for; `room` is for gates.
    void answer(float *out, float *room, long head, long t, int n) const {
        if (p.raw) write(out, e, head, t, n, p.e, p.raw);
        const float *gate = p.gate ? where(p.gate, p.gate_stride, head, t, n, p.e, e, room, p.dtype) : nullptr;
        const bool at_once = p.norm && !p.dtype && p.e == e;
        for (int i = 0; i < n && p.norm; i++) {
            float *x = out + i * e, *to = at_once ? p.out + (head * p.length + t + i) * e : x;
            finish_row(x, e, p.e, p.norm, scale, gate ? gate + i * e : nullptr, to);
        }
        for (int i = 0; i < n && !at_once; i++) write_row(out + i * e, p.e, p.dtype, p.out, (head * p.length + t + i) * p.e);
    }

    // The gradients of outputs before the norm; those of gate and scale are written.
    void gradients(long head, long t, int n, float *to, float *raw, float *gate, float *dscale) const {
        const int64_t stride[3] = {p.heads * p.length * p.e, p.length * p.e, p.e};
        tokens(p.grad, stride, head, t, n, p.e, e, to);
        if (!p.norm) return;
        tokens(p.raw, stride, head, t, n, p.e, e, raw);
        if (p.gate) tokens(p.gate, p.gate_stride, head, t, n, p.e, e, gate);
        for (int i = 0; i < n; i++)
            pull_finish_row(to + i * e, raw + i * e, e, p.e, p.norm, scale, p.gate ? gate + i * e : nullptr, dscale);
        if (p.gate) write(gate, e, head, t, n, p.e, p.dgate);
    }

    // From the gradients of queries or keys to those of the inputs, which are written.
    void write_pulled(float *rows, float *room, const float *from, const int64_t *stride, float scale, long head, long t, int n, float *to) const {
        if (p.unit) tokens(from, stride, head, t, n, p.d, d, room);
        for (int i = 0; i < n; i++) {
            float *x = rows + (long)i * d;
            if (p.turn) turn_row<true>(x, row(p.turn, p.turn_stride, head, t + i), p.d / 2, scale, x);
            else if (p.unit) pull_unit_row(room + (long)i * d, d, p.unit, x);
            else if (scale != 1) scale_row(x, d, scale, x);
        }
        write(rows, d, head, t, n, p.d, to);
    }

    void write_values(float *rows, float *room, long head, long t, int n) const {
        if (p.swish_values) {
            tokens(p.v, p.v_stride, head, t, n, p.e, e, room);
            pull_swish_row(room, n * e, rows);
        }
        write(rows, e, head, t, n, p.e, p.dv);
    }

    void write_scale(const float *dscale, long head) const {
        if (p.dscale) copy(p.dscale + head * p.e, dscale, p.e);
    }

    void read_state(const float *from, long head, float *S) const {
        std::memset(S, 0, sizeof(float) * d * e);
        for (int i = 0; from && i < p.d; i++)
            std::memcpy(S + (long)i * e, from + (head * p.d + i) * p.e, sizeof(float) * p.e);
    }

    void write_state(const float *S, long head, float *to) const {
        for (int i = 0; to && i < p.d; i++)
            std::memcpy(to + (head * p.d + i) * p.e, S + (long)i * e, sizeof(float) * p.e);
    }

    // S_c <- S_c * left_c
    void fade_state(const float *left, float *S) const {
        for (int i = 0; i < p.d; i++)
            for (int j = 0; j < e; j += LANES) store(S + (long)i * e + j, load(S + (long)i * e + j) * left[i]);
    }
};

// What is left over the parts of a chunk, where one decay holds for all channels.
struct Fading {
    float since_start[C];  // at a token, of what the chunk found
    float until_end[C];    // at the chunk's end, of what the token wrote
    float whole;
    Fading() = default;
    explicit Fading(const float *log_decay) {
        float total = 0, later = 0;
        for (int i = 0; i < C; i++) since_start[i] = total += log_decay[i];
        for (int j = C - 1; j >= 0; j--) {
            until_end[j] = later;
            later += log_decay[j];
        }
        for (int i = 0; i < C; i += LANES) {
            store(since_start + i, exp(load(since_start + i)));
            store(until_end + i, exp(load(until_end + i)));
        }
        whole = since_start[C - 1];
    }
};

// a_ji: what is left at token i of what token j wrote, where i >= j.
static inline void between(const float *log_decay, float *a) {
    vec sums[C / LANES] = {};  // of decays after j, up to i
    for (int j = C - 1; j >= 0; j--)
        for (int x = j / LANES; x < C / LANES; x++) {
            sums[x] = number(x) > all(j) ? sums[x] + log_decay[j + 1] : vec{};
            store(a + j * C + x * LANES, exp(sums[x]));
        }
}

// P_ji times a_ji, and zero where i < j.
static inline void fade_between(const float *a, float *P) {
    for (int j = 0; j < C; j++) {
        int x = j / LANES;
        std::memset(P + j * C, 0, sizeof(float) * x * LANES);
        float *first = P + j * C + x * LANES;
        store(first, number(x) >= all(j) ? load(first) * load(a + j * C + x * LANES) : vec{});
        for (x = (x + 1) * LANES; x < C; x += LANES) store(P + j * C + x, load(P + j * C + x) * load(a + j * C + x));
    }
}

// The flow through each decay, by terms of weights P_ji and their gradients A_ji: the sum over j before the decay and
// i not before it, which is added to every `step`th number of `flow`.
static inline void flow_between(const float *P, const float *A, float *flow, int step) {
    vec before[C / LANES] = {};  // by i, of all j before the decay
    for (int j = 0; j < C; j++) {
        vec through = vec{};
        for (int x = j / LANES; x < C / LANES; x++) {
            through += number(x) >= all(j) ? before[x] : vec{};
            before[x] += load(A + j * C + x * LANES) * load(P + j * C + x * LANES);
        }
        flow[j * step] += sum(through);
    }
}

INLINE void scale_rows(const float *from, int width, const float *by, float *to) {
    for (int i = 0; i < C; i++)
        for (int c = 0; c < width; c += LANES) store(to + i * width + c, load(from + i * width + c) * by[i]);
}

INLINE void multiply(const float *a, const float *b, int n, float *to) {
    for (int x = 0; x < n; x += LANES) store(to + x, load(a + x) * load(b + x));
}

INLINE void add_to(float *a, const float *b, int n) {
    for (int x = 0; x < n; x += LANES) store(a + x, load(a + x) + load(b + x));
}

// A kernel over all heads, forward or backward, with tiles for each thread.
template <class Kernel, class Tiles> static int each_head(const Recurrence &call, bool backward) {
    Kernel k(call);
#pragma omp parallel num_threads(call.threads)
    {
        Flushed flushed;
        Tiles w(k.d, k.e, backward);
#pragma omp for
        for (long head = 0; head < k.heads; head++) {
            if (backward) k.backward(w, head);
            else k.forward(w, head);
        }
    }
    return 0;
}
