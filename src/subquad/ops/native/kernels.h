// What Python calls, by ctypes: plain structs and pointers, from one library for each instruction set.

#pragma once

#include <cstdint>

enum Map {
    GIVEN,  // inputs are features
    ELU,    // elu(x) + 1
    FAVOR,  // exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS    // inputs are the logarithms of features
};

// One call; mirrored field by field in linear.py. Strides count numbers, of batch, head and token; the last
// dimension is contiguous, and so is all that is not strided. Pointers may be null where they are optional.
struct Linear {
    int64_t batch, heads, queries, keys;
    int32_t d, m, e;      // widths of inputs, features and values
    int32_t map, threads;
    float half;           // of 1 / sqrt(d), for FAVOR
    const float *q, *k, *v;
    int64_t q_stride[3], k_stride[3], v_stride[3];
    const uint8_t *valid;              // optional: (batch keys), nonzero at real tokens
    const float *W;                    // FAVOR: (m d), scaled by d^(-1/4)
    const float *S0, *z0, *c0;         // optional: sums before the first key, (heads m e), (heads m), (heads m)
    float *S1, *z1, *c1;               // optional: sums after the last
    float *out, *den;                  // (heads queries e), (heads queries)
    const float *grad;                 // backward: of out
    float *dq, *dk, *dv;
};

// Softmax attention within a window: query i sees keys i - left to i + right.
struct Window {
    int64_t batch, heads, length, left, right;
    int32_t d, e, threads;
    float scale;
    const float *q, *k, *v;
    int64_t q_stride[3], k_stride[3], v_stride[3];
    const int64_t *lengths;            // optional: (batch), tokens of each sequence; what is behind them is padding
    float *out, *lse;                  // (heads length e), (heads length): also the log of the sum of weights
    const float *grad, *grad_lse;      // backward: of out and, optional, of lse
    float *dq, *dk, *dv;               // dk and dv must be zero when called
};

// A matrix for each head that fades, and to which each token adds: decayed products, and the delta rule.
struct Recurrence {
    int64_t batch, heads, length;
    int32_t d, e, channels, threads;   // decays: one (1), or one for each channel of a key (d)
    const float *q, *k, *v, *log_decay, *beta;  // beta, of width 1: the delta rule's
    int64_t q_stride[3], k_stride[3], v_stride[3], log_decay_stride[3], beta_stride[3];
    const float *S0;                   // (heads d e), before the first token
    float *S1, *out;                   // (heads d e), (heads length e)
    const float *grad, *grad_S1;       // backward: of out and S1
    float *dq, *dk, *dv, *dlog_decay, *dbeta, *dS0;  // (heads length channels) and (heads length); all or nothing
};

// Each gives 0, or 1 where a denominator has left the range of float32 and the outputs cannot be used.
extern "C" {
#pragma GCC visibility push(default)
int linear(const Linear *);
int linear_backward(const Linear *);
int linear_causal(const Linear *);
int linear_step(const Linear *);  // the same, for a few tokens
int linear_causal_backward(const Linear *);
int window(const Window *);
int window_backward(const Window *);
int decayed(const Recurrence *);
int decayed_backward(const Recurrence *);
int delta(const Recurrence *);
int delta_backward(const Recurrence *);
#pragma GCC visibility pop
}
