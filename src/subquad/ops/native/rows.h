// Rows on their way into a recurrence and out of it: turned by position, brought to length 1, normed and gated.
//
// Rows are padded with zeros to whole vectors, and stay so. See ops/recurrence/rows.py.

#pragma once

#include "simd.h"

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exp(x < all(-88.0f) ? all(88.0f) : -x)); }

// log(1 / (1 + exp(-x))); log(1 + y) / y by its polynomial of least relative error (3e-8) between 0 and 1.
INLINE vec log_sigmoid(vec x) {
    vec y = exp(x < vec{} ? x : -x), p = all(5.232629297e-3f);
    p = p * y - 2.950498672e-2f;
    p = p * y + 7.8225557307e-2f;
    p = p * y - 1.3663213987e-1f;
    p = p * y + 1.9105992834e-1f;
    p = p * y - 2.4842979035e-1f;
    p = p * y + 3.3319096488e-1f;
    p = p * y - 4.9999493134e-1f;
    p = p * y + 9.9999996988e-1f;
    return (x < vec{} ? x : vec{}) - p * y;
}

INLINE void scale_row(const float *x, int width, float by, float *to) {
    for (int c = 0; c < width; c += LANES) store(to + c, load(x + c) * by);
}

// The pairs (c, c + half) of x, turned by the angles whose cosines and sines are given; `back` turns them back.
template <bool back>
INLINE void turn_row(const float *x, const float *cosines, int half, float scale, float *to) {
    const float *sines = cosines + half;
    const float forth = back ? -scale : scale;
    int c = 0;
    for (; c + LANES <= half; c += LANES) {
        vec a = load(x + c), b = load(x + c + half), cosine = load(cosines + c) * scale, sine = load(sines + c) * forth;
        store(to + c, a * cosine - b * sine);
        store(to + c + half, b * cosine + a * sine);
    }
    for (; c < half; c++) {
        float a = x[c], b = x[c + half], cosine = cosines[c] * scale, sine = sines[c] * forth;
        to[c] = a * cosine - b * sine;
        to[c + half] = b * cosine + a * sine;
    }
}

INLINE void swish_row(const float *x, int width, float *to) {
    for (int c = 0; c < width; c += LANES) store(to + c, load(x + c) * sigmoid(load(x + c)));
}

// dx <- the gradient of x, from that of swish(x)
INLINE void pull_swish_row(const float *x, int width, float *dx) {
    for (int c = 0; c < width; c += LANES) {
        vec at = load(x + c), s = sigmoid(at);
        store(dx + c, load(dx + c) * s * (1.0f + at * (1.0f - s)));
    }
}

// swish(x), of length 1
INLINE void unit_row(const float *x, int width, float epsilon, float *to) {
    swish_row(x, width, to);
    scale_row(to, width, 1 / std::sqrt(dot(to, to, width) + epsilon), to);
}

// dx <- the gradient of x, from that of what unit_row makes of it
INLINE void pull_unit_row(float *x, int width, float epsilon, float *dx) {
    vec squares = vec{}, along = vec{};
    for (int c = 0; c < width; c += LANES) {
        vec s = load(x + c) * sigmoid(load(x + c));
        squares += s * s;
        along += s * load(dx + c);
    }
    float r = 1 / std::sqrt(sum(squares) + epsilon), share = sum(along) * r * r;
    for (int c = 0; c < width; c += LANES) {
        vec at = load(x + c), s = sigmoid(at);
        store(dx + c, (load(dx + c) - at * s * share) * r * s * (1.0f + at * (1.0f - s)));
    }
}

// x over its root mean square, times `scale`, times swish(gate) if there is one
INLINE void finish_row(const float *x, int width, int numbers, float epsilon, const float *scale, const float *gate, float *to) {
    float r = 1 / std::sqrt(dot(x, x, width) / numbers + epsilon);
    for (int c = 0; c < width; c += LANES) {
        vec y = load(x + c) * r * load(scale + c);
        store(to + c, gate ? y * load(gate + c) * sigmoid(load(gate + c)) : y);
    }
}

// From the gradient g of what finish_row makes of x: g <- that of x, gate <- that of the gate, dscale += that of scale
INLINE void pull_finish_row(float *g, const float *x, int width, int numbers, float epsilon, const float *scale, float *gate, float *dscale) {
    float r = 1 / std::sqrt(dot(x, x, width) / numbers + epsilon);
    vec along = vec{};
    for (int c = 0; c < width; c += LANES) {
        vec n = load(x + c) * r, z = load(g + c);
        if (gate) {
            vec at = load(gate + c), s = sigmoid(at);
            store(gate + c, z * n * load(scale + c) * s * (1.0f + at * (1.0f - s)));
            z *= at * s;
        }
        store(dscale + c, load(dscale + c) + z * n);
        z *= load(scale + c);
        along += z * n;
        store(g + c, z);
    }
    float mean = sum(along) / numbers * r;
    for (int c = 0; c < width; c += LANES) store(g + c, (load(g + c) - load(x + c) * mean) * r);
}
