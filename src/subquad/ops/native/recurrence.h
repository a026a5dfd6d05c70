// What the gated recurrences share: a chunk of tokens in tiles, and what decays leave of one token at another.
//
// Every exponent is a sum of logarithms of decays, never a difference: see ops/decay.py.

#pragma once

#include "kernels.h"
#include "product.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

constexpr int C = 64;  // tokens of a chunk

// What has nearly faded is flushed to zero: numbers below the smallest normal one cost a hundred times as much.
struct Flushed {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Flushed() { _mm_setcsr(before | 0x8040); }
    ~Flushed() { _mm_setcsr(before); }
#endif
};

// The numbers of the tokens of a chunk.
struct Numbers {
    alignas(64) float at[C];
    constexpr Numbers() : at() {
        for (int i = 0; i < C; i++) at[i] = (float)i;
    }
};
constexpr Numbers NUMBERS;

INLINE vec number(int vector) { return load(NUMBERS.at + vector * LANES); }

// Zero in row j what stands left of column j.
static inline void keep_upper(float *tile) {
    for (int j = 0; j < C; j++) std::memset(tile + (long)j * C, 0, sizeof(float) * j);
}

struct Sequences {
    const Recurrence &p;
    int d, e;    // padded to whole panels
    long heads;  // of the whole batch
    explicit Sequences(const Recurrence &p)
        : p(p), d(round_up(p.d, N_R)), e(round_up(p.e, N_R)), heads(p.batch * p.heads) {}

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    // n tokens as rows of `to`, which are `padded` wide, and zeros around them.
    void tokens(const float *from, const int64_t *stride, long head, long t, int n, int width, int padded, float *to) const {
        for (int i = 0; i < n; i++) {
            std::memcpy(to + (long)i * padded, row(from, stride, head, t + i), sizeof(float) * width);
            std::memset(to + (long)i * padded + width, 0, sizeof(float) * (padded - width));
        }
        std::memset(to + (long)n * padded, 0, sizeof(float) * (C - n) * padded);
    }

    void queries(long head, long t, int n, float *to) const { tokens(p.q, p.q_stride, head, t, n, p.d, d, to); }
    void keys(long head, long t, int n, float *to) const { tokens(p.k, p.k_stride, head, t, n, p.d, d, to); }
    void values(long head, long t, int n, float *to) const { tokens(p.v, p.v_stride, head, t, n, p.e, e, to); }
    void gradients(long head, long t, int n, float *to) const {
        const int64_t stride[3] = {p.heads * p.length * p.e, p.length * p.e, p.e};
        tokens(p.grad, stride, head, t, n, p.e, e, to);
    }

    // One number a token, and zeros to the chunk's end and one beyond.
    void numbers(const float *from, const int64_t *stride, long head, long t, int n, float *to) const {
        for (int i = 0; i <= C; i++) to[i] = i < n ? *row(from, stride, head, t + i) : 0;
    }

    // To and from (heads length width), without the padding.
    void write(const float *from, int padded, long head, long t, int n, int width, float *to) const {
        for (int i = 0; i < n; i++)
            std::memcpy(to + (head * p.length + t + i) * width, from + (long)i * padded, sizeof(float) * width);
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

// P_ji times a_ji, what is left at token i of what token j wrote, and zero where i < j. Keeps `a`, if there is one.
static inline void fade_between(const float *log_decay, float *P, float *a) {
    vec sums[C / LANES] = {};  // of decays after j, up to i
    for (int j = C - 1; j >= 0; j--) {
        std::memset(P + j * C, 0, sizeof(float) * (j / LANES * LANES));
        for (int x = j / LANES; x < C / LANES; x++) {
            vec i = number(x), left;
            sums[x] = i > all(j) ? sums[x] + log_decay[j + 1] : vec{};
            left = exp(sums[x]);
            float *at = P + j * C + x * LANES;
            store(at, i >= all(j) ? load(at) * left : vec{});
            if (a) store(a + j * C + x * LANES, left);
        }
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
template <class Kernel, class Tiles> static int each_head(const Recurrence &given, bool backward) {
    Kernel k(given);
#pragma omp parallel num_threads(given.threads)
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
