// What Python calls, by ctypes: plain structs and pointers, from one library for each instruction set.

#pragma once

#include <cstdint>

enum FeatureKind {
    FEATURES,  // inputs are features
    ELU,       // elu(x) + 1
    FAVOR,     // exp(W x - |x|^2 / (2 sqrt(d)))
    LOGS       // inputs are the logarithms of features
};

// One call; mirrored field by field in ops/linear_attention/cpu.py, as the others are in their operators'. Strides count numbers, of batch, head and token; the last
// dimension is contiguous, and so is all that is not strided. Pointers may be null where they are optional.
struct Linear {
    int64_t batch, heads, queries, keys;
    int32_t d, m, e;      // widths of inputs, features and values
    int32_t kind, threads;
    int32_t dtype;        // numbers of q, k, v and out, and of grad, dq, dk and dv (half.h)
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
    int32_t dtype;                     // numbers of q, k, v and out, and of grad and dq (half.h)
    float scale;
    const float *q, *k, *v;
    int64_t q_stride[3], k_stride[3], v_stride[3];
    const int64_t *lengths;            // optional: (batch), tokens of each sequence; what is behind them is padding
    float *out, *lse;                  // (heads length e), (heads length): also the log of the sum of weights
    const float *grad, *grad_lse;      // backward: of out and, optional, of lse
    float *dq, *dk, *dv;               // dk and dv must be zero when called
};

// Softmax attention over tiles of one shape, merged into outputs over other keys: `Tiling` of ops/tiles.py.
struct Tiled {
    int64_t batch, heads, length, tiles;
    int64_t queries_batch, keys_batch, seen_batch;  // strides: 0 where all sequences have the same
    int32_t d, e, width, units, unit, rows, columns, threads;
    float scale;
    const float *q, *k, *v;
    int64_t q_stride[3], k_stride[3], v_stride[3];
    const int64_t *lengths;            // optional: (batch)
    const int64_t *queries;            // optional: (tiles width); without, tile after tile has all tokens in order
    const int64_t *keys;               // (tiles units), of `unit` tokens each
    const uint8_t *seen;               // (tiles rows columns): pairs, each for width / rows queries and some keys
    float *out, *lse;                  // (heads length e), (heads length): read and written; lse is -inf at first
    const float *grad, *delta;         // backward: of out; delta (heads length) is its product with out
    float *dq, *dk, *dv;               // added to
};

// A matrix for each head that fades, and to which each token adds: decayed products, and the delta rule. Rows may be
// changed on their way in and out (rows.h): what is null or zero of the second half is left out.
struct Recurrence {
    int64_t batch, heads, length;
    int32_t d, e, channels, threads;   // decays: one (1), or one for each channel of a key (d)
    const float *q, *k, *v, *log_decay, *beta;  // beta, of width 1: the delta rule's
    int64_t q_stride[3], k_stride[3], v_stride[3], log_decay_stride[3], beta_stride[3];
    const float *S0;                   // (heads d e), before the first token
    float *S1, *out;                   // (heads d e), (heads length e)
    const float *grad, *grad_S1;       // backward: of out and S1
    float *dq, *dk, *dv, *dlog_decay, *dbeta, *dS0;  // (heads length channels) and (heads length); all or nothing
    float q_scale;                     // of queries
    float root;                        // decays are not given as logarithms, but as log sigmoid(log_decay) * root
    float unit;                        // swish, and length 1, of queries and keys: added to the square of the length
    float norm;                        // of outputs, by root mean square: added to the square
    int32_t swish_values;
    const float *turn, *gate, *scale;  // (d) for each token, cosines and sines; (e) for each token; (e)
    int64_t turn_stride[3], gate_stride[3];
    float *raw;                        // (heads length e), outputs before the norm; backward reads them
    float *dgate, *dscale;             // (heads length e), (heads e)
    int32_t dtype, decays_dtype;       // forward: numbers of q, k, v, gate and out, and of decays by channel (half.h)
};

// Softmax attention within buckets: in each round tokens stand in an order, cut into chunks, and query i sees key j of
// its chunk and of the one before where its mark less that of j is 0 or 1, and where no earlier round had it so.
struct Bucketed {
    int64_t batch, heads, length;
    int32_t d, e, rounds, size, threads;
    int32_t causal, band, alone, repeats;  // as bucket_attention.py has them
    float scale;
    const float *q, *k, *v;
    int64_t q_stride[3], k_stride[3], v_stride[3];
    const int64_t *order;              // (heads rounds length): the token at each place
    const int32_t *marks;              // (heads rounds length): of each token
    float *out, *lse;                  // (heads length e), (heads length); out must be zero when called
    const float *grad;                 // backward: of out
    float *dq, *dk, *dv;               // must be zero when called
};

// Each gives 0, or 1 where a denominator has left the range of float32 and the outputs cannot be used.
extern "C" {
#pragma GCC visibility push(default)
int digest();
int size_of(const char *);  // bytes of the struct of that name
int linear(const Linear *);
int linear_backward(const Linear *);
int linear_causal(const Linear *);
int linear_step(const Linear *);  // the same, for a few tokens
int linear_causal_backward(const Linear *);
int window(const Window *);
int window_backward(const Window *);
int tiled(const Tiled *);
int tiled_backward(const Tiled *);
int bucketed(const Bucketed *);
int bucketed_backward(const Bucketed *);
int decayed(const Recurrence *);
int decayed_backward(const Recurrence *);
int delta(const Recurrence *);
int delta_backward(const Recurrence *);
#pragma GCC visibility pop
}
