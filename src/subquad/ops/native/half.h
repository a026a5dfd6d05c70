// Numbers of 16 bits, widened to float32 when they are read, and rounded to the nearest, ties to even, when written.

#pragma once

#include "simd.h"

enum Precision { FLOAT32, BFLOAT16, FLOAT16 };  // of what is read and written: `dtype` in kernels.h

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t halves_anywhere __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE uvec words(uint32_t x) { return x - (uvec){}; }

INLINE vec widen(halves x, Precision precision) {
    uvec bits = __builtin_convertvector(x, uvec);
    if (precision == BFLOAT16) return (vec)(bits << 16);
    uvec sign = (bits & words(0x8000)) << 16, size = bits & words(0x7fff);
    vec small = __builtin_convertvector((ivec)size, vec) * 0x1p-24f, normal = (vec)(size << 13) * 0x1p112f;
    uvec to = size < words(0x400) ? (uvec)small : (uvec)normal;
    to = size < words(0x7c00) ? to : (size << 13) | words(0x7f800000);
    return (vec)(to | sign);
}

INLINE halves narrow(vec x, Precision precision) {
    uvec bits = (uvec)x, size = bits & words(0x7fffffff), to;
    if (precision == BFLOAT16) {
        to = (bits + words(0x7fff) + ((bits >> 16) & words(1))) >> 16;
        to = size > words(0x7f800000) ? words(0x7fc0) : to;
        return __builtin_convertvector(to, halves);
    }
    uvec small = __builtin_convertvector(__builtin_convertvector((vec)size * 0x1p24f + 8388608.0f - 8388608.0f, ivec), uvec);
    uvec normal = (size + words(0xfff) + ((size >> 13) & words(1)) - words(112u << 23)) >> 13;
    to = size < words(0x38800000) ? small : normal;
    to = size >= words(0x477ff000) ? words(0x7c00) : to;
    to = size > words(0x7f800000) ? words(0x7e00) : to;
    return __builtin_convertvector(to | ((bits >> 16) & words(0x8000)), halves);
}

INLINE void widen_row(const uint16_t *from, int n, Precision precision, float *to) {
    int c = 0;
    for (; c + LANES <= n; c += LANES) store(to + c, widen(*(const halves_anywhere *)(from + c), precision));
    if (c == n) return;
    halves rest = {};
    std::memcpy(&rest, from + c, sizeof(uint16_t) * (n - c));
    vec wide = widen(rest, precision);
    std::memcpy(to + c, &wide, sizeof(float) * (n - c));
}

INLINE void narrow_row(const float *from, int n, Precision precision, uint16_t *to) {
    int c = 0;
    for (; c + LANES <= n; c += LANES) *(halves_anywhere *)(to + c) = narrow(load(from + c), precision);
    if (c == n) return;
    vec rest = {};
    std::memcpy(&rest, from + c, sizeof(float) * (n - c));
    halves narrowed = narrow(rest, precision);
    std::memcpy(to + c, &narrowed, sizeof(uint16_t) * (n - c));
}

// n numbers, the first of which is number `at` of `from`.
INLINE void read_row(const float *from, int64_t at, int n, int dtype, float *to) {
    const uint16_t *halves = (const uint16_t *)from + at;
    if (dtype == BFLOAT16) widen_row(halves, n, BFLOAT16, to);
    else if (dtype == FLOAT16) widen_row(halves, n, FLOAT16, to);
    else copy(to, from + at, n);
}

INLINE void write_row(const float *from, int n, int dtype, float *to, int64_t at) {
    uint16_t *halves = (uint16_t *)to + at;
    if (dtype == BFLOAT16) narrow_row(from, n, BFLOAT16, halves);
    else if (dtype == FLOAT16) narrow_row(from, n, FLOAT16, halves);
    else copy(to + at, from, n);
}

// A row where it lies, if it is float32, and else widened into `room`.
INLINE const float *row_of(const float *from, int64_t at, int n, int dtype, float *room) {
    if (dtype == FLOAT32) return from + at;
    read_row(from, at, n, dtype, room);
    return room;
}

INLINE void clear_row(float *to, int64_t at, int n, int dtype) {
    if (dtype == FLOAT32) std::memset(to + at, 0, sizeof(float) * n);
    else std::memset((uint16_t *)to + at, 0, sizeof(uint16_t) * n);
}
