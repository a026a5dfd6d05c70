// Vectors of LANES floats by GCC's and Clang's vector types: one source for SSE, AVX2, AVX-512 and NEON.
//
// LANES comes with the compiler's flags for one instruction set (build.py). Each set has a library of its own: in
// one library the linker could keep, of a function that several sets compiled, the one that this machine cannot run.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#ifndef LANES
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec_anywhere *)p; }
INLINE void store(float *p, vec x) { *(vec_anywhere *)p = x; }
INLINE vec all(float x) { return x - (vec){}; }
INLINE vec counted() {  // 0, 1, 2, ...
    vec x;
    for (int i = 0; i < LANES; i++) x[i] = (float)i;
    return x;
}

INLINE vec greater(vec a, vec b) { return a > b ? a : b; }

INLINE float largest(vec x) {
    float s = x[0];
    for (int i = 1; i < LANES; i++) s = std::max(s, x[i]);
    return s;
}

// exp(x) for x <= 88, within two units in the last place; zero below the smallest normal number. NaN stays NaN.
INLINE vec exp(vec x) {
    const vec magic = all(12583039.0f);  // 1.5 * 2^23 + 127: adding it rounds, and its low bits are an exponent's
    vec z = x * 1.44269504088896341f + magic;
    vec n = z - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.3814466617e-3f);  // (e^r - 1 - r) / r^2 by its polynomial of least relative error
    p = p * r + 8.3687804437e-3f;
    p = p * r + 4.1668394220e-2f;
    p = p * r + 1.6666520107e-1f;
    p = p * r + 4.9999993412e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return x < all(-87.0f) ? vec{} : p * (vec)((ivec)z << 23);
}

INLINE vec elu_plus_one(vec x) { return x > vec{} ? x + 1.0f : exp(x > vec{} ? vec{} : x); }

typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_anywhere __attribute__((vector_size(16), aligned(4), may_alias));

// By fours, which is quicker than one after the other.
INLINE float sum(vec x) {
    vec4 parts[LANES / 4], s;
    std::memcpy(parts, &x, sizeof(x));
    s = parts[0];
    for (int i = 1; i < LANES / 4; i++) s += parts[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

template <int step, int... i>
INLINE void exchange(vec &a, vec &b, std::integer_sequence<int, i...>) {
    vec low = __builtin_shufflevector(a, b, (i & step ? LANES + i - step : i)...);
    b = __builtin_shufflevector(a, b, (i & step ? LANES + i : i + step)...);
    a = low;
}

// Rows become columns by exchanging ever larger squares beside the diagonal: those of one number, of two by two, ...
template <int step = 1>
INLINE void transpose(vec (&rows)[LANES]) {
    if constexpr (step < LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & step)) exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, LANES>());
        transpose<2 * step>(rows);
    }
}

// `to` (columns rows) from `from`, whose rows are ld apart, those of `to` to_ld; both counts are multiples of LANES.
static inline void transpose(const float *from, long ld, int rows, int columns, float *to, long to_ld) {
    for (int j = 0; j < columns; j += LANES)
        for (int i = 0; i < rows; i += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int x = 0; x < LANES; x++) square[x] = load(from + (i + x) * ld + j);
            transpose(square);
#pragma GCC unroll 16
            for (int x = 0; x < LANES; x++) store(to + (j + x) * to_ld + i, square[x]);
        }
}

static inline void transpose(const float *from, int rows, int columns, float *to) { transpose(from, columns, rows, columns, to, rows); }

// The sum of each row: as in `transpose`, but squares are added to those that they were exchanged with.
template <int step = 1>
INLINE vec sums(vec (&rows)[LANES]) {
    if constexpr (step < LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i += 2 * step) {
            exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, LANES>());
            rows[i] += rows[i + step];
        }
        return sums<2 * step>(rows);
    }
    return rows[0];
}

INLINE float dot(const float *x, const float *y, int n) {
    vec total = vec{};
    int i = 0;
    for (; i + LANES <= n; i += LANES) total += load(x + i) * load(y + i);
    float s = sum(total);
    for (; i < n; i++) s += x[i] * y[i];
    return s;
}

// to = a * from + b * x
INLINE void blend(float *to, const float *from, float a, const float *x, float b, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * a + load(x + i) * b);
    for (; i < n; i++) to[i] = a * from[i] + b * x[i];
}

INLINE void copy(float *to, const float *from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = from[i];
}

// to = a * from
INLINE void scale(float *to, const float *from, float a, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * a);
    for (; i < n; i++) to[i] = a * from[i];
}

// Memory of one thread, aligned for vectors, all zero.
struct Scratch {
    float *p;
    explicit Scratch(size_t n) {
        size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
        p = (float *)std::aligned_alloc(64, std::max<size_t>(bytes, 64));
        std::memset(p, 0, bytes);
    }
    ~Scratch() { std::free(p); }
    Scratch(const Scratch &) = delete;
    operator float *() const { return p; }
};

INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
