// C (+)= A B on tiles that lie in cache: the one matrix product under all kernels.
//
// A is read one number at a time through two strides, so that a transpose is no copy. B and C are read and
// written in panels of N_R columns: panel j begins at B + j * b_panel, and its rows are ldb apart. For a plain
// row-major matrix the panel stride is N_R.

#pragma once

#include "simd.h"

constexpr int M_R = LANES >= 16 ? 12 : LANES >= 8 ? 6 : 4;  // accumulators that fit into registers
constexpr int N_R = 2 * LANES;

struct Left { const float *p; long row, column; };
struct Right { const float *p; long row, panel; };
struct Result { float *p; long row, panel; };

enum Shape {
    FULL,
    RESULT_UPPER,  // C is needed on and above its diagonal only
    LEFT_LOWER,    // A is zero above its diagonal
    LEFT_UPPER,    // A is zero below its diagonal
    LEFT_BAND      // A is zero outside of a band
};

struct Band { long first, last; };  // columns that are not zero, counted from the diagonal

INLINE int within(long x, int k) { return (int)std::max(0L, std::min<long>(x, k)); }

template <int rows, bool add>
INLINE void tile(int first, int last, const float *a, long a_row, long a_column, const float *b, long ldb, float *c, long ldc) {
    vec left[rows], right[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        left[i] = add ? load(c + i * ldc) : (vec){};
        right[i] = add ? load(c + i * ldc + LANES) : (vec){};
    }
    for (long p = first; p < last; p++) {
        vec b0 = load(b + p * ldb), b1 = load(b + p * ldb + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec x = all(a[i * a_row + p * a_column]);
            left[i] += x * b0;
            right[i] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        store(c + i * ldc, left[i]);
        store(c + i * ldc + LANES, right[i]);
    }
}

template <bool add, int rows = M_R>
INLINE void tiles(int count, int first, int last, const float *a, long a_row, long a_column, const float *b, long ldb, float *c, long ldc) {
    if constexpr (rows > 0) {
        if (count == rows) tile<rows, add>(first, last, a, a_row, a_column, b, ldb, c, ldc);
        else tiles<add, rows - 1>(count, first, last, a, a_row, a_column, b, ldb, c, ldc);
    }
}

// m x k times k x n; n is rounded up to whole panels, which the memory of B and C must hold.
template <bool add, Shape shape = FULL>
static void product(int m, int n, int k, Left a, Right b, Result c, Band band = {}) {
    for (int j = 0; j < n; j += N_R) {
        const float *bj = b.p + (j / N_R) * b.panel;
        float *cj = c.p + (j / N_R) * c.panel;
        int needed = shape == RESULT_UPPER ? std::min(m, j + N_R) : m;
        for (int i = 0; i < needed; i += M_R) {
            int rows = std::min(M_R, needed - i);
            int first = shape == LEFT_UPPER ? within(i, k) : shape == LEFT_BAND ? within(i + band.first, k) : 0;
            int last = shape == LEFT_LOWER ? within(i + rows, k) : shape == LEFT_BAND ? within(i + rows + band.last, k) : k;
            const float *ai = a.p + i * a.row;
            if (rows == M_R) tile<M_R, add>(first, last, ai, a.row, a.column, bj, b.row, cj + i * c.row, c.row);
            else tiles<add, M_R - 1>(rows, first, last, ai, a.row, a.column, bj, b.row, cj + i * c.row, c.row);
        }
    }
}
