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

#ifndef LANES
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec_anywhere *)p; }
INLINE void store(float *p, vec x) { *(vec_anywhere *)p = x; }
INLINE vec all(float x) { return x - (vec){}; }
INLINE vec greater(vec a, vec b) { return a > b ? a : b; }

INLINE float largest(vec x) {
    float s = x[0];
    for (int i = 1; i < LANES; i++) s = std::max(s, x[i]);
    return s;
}

// exp(x) for x <= 88, within two units in the last place; zero below the smallest normal number. NaN stays NaN.
INLINE vec exp(vec x) {
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    vec z = greater(x, all(-90.0f)) * 1.44269504088896341f + magic;
    vec n = z - magic;
    vec r = greater(x, all(-90.0f)) - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    ivec bits = (ivec)p + ((ivec)z << 23);
    vec y = x > all(-87.0f) ? (vec)bits : (vec){};
    return x == x ? y : x;
}

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

// `to` (columns rows) from `from` (rows columns); both counts are multiples of four.
static inline void transpose(const float *from, int rows, int columns, float *to) {
    for (int j = 0; j < columns; j += 4)
        for (int i = 0; i < rows; i += 4) {
            vec4 r[4], t[4];
            for (int x = 0; x < 4; x++) r[x] = *(const vec4_anywhere *)(from + (long)(i + x) * columns + j);
            t[0] = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
            t[1] = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
            t[2] = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
            t[3] = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
            float *at = to + (long)j * rows + i;
            *(vec4_anywhere *)at = __builtin_shufflevector(t[0], t[1], 0, 1, 4, 5);
            *(vec4_anywhere *)(at + rows) = __builtin_shufflevector(t[0], t[1], 2, 3, 6, 7);
            *(vec4_anywhere *)(at + 2 * rows) = __builtin_shufflevector(t[2], t[3], 0, 1, 4, 5);
            *(vec4_anywhere *)(at + 3 * rows) = __builtin_shufflevector(t[2], t[3], 2, 3, 6, 7);
        }
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
