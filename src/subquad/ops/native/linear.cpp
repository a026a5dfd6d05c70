// Averages of values under a kernel that factorises, a(q, k) = phi(q) . phi(k): see ops/kernel_sums.py.
//
//     out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j)
//
// Tokens are taken C at a time, and features are made where they are used, never stored: forward and backward
// need memory for the inputs, the outputs, and a few tiles for each thread. Features lie transposed (feature by
// token), so that sums over features, shifts and exponentials all run along tokens, and no tile of features is
// ever transposed.
//
// Exponential features carry a shift c_f for each feature, the largest exponent of any key so far, and one for
// each query. In a causal chunk later keys share the shift: where that would leave a query less than SMALLEST,
// the kernel says so, and the caller takes shorter chunks.

#include "kernels.h"
#include "product.h"

namespace {

constexpr int C = 64;               // tokens of a chunk
constexpr float NOTHING = -1e30f;   // the shift before the first key
constexpr float SMALLEST = 1e-26f;  // a denominator below this has lost terms

struct Sums {
    float *S, *z, *c;  // (m e), (m), (m)
};

// What the keys of a chunk, or the queries, bring to one thread.
struct Tiles {
    int d, m, e;  // padded to whole panels
    Scratch x, v, g, xT, vT, gT, phi_q, phi_k, P, A, out, change, gd, den;
    Tiles(int d, int m, int e)
        : d(d), m(m), e(e), x(C * d), v(C * e), g(C * e), xT(d * C), vT(e * C), gT(e * C), phi_q(m * C), phi_k(m * C),
          P(C * C), A(C * C), out(C * std::max(d, e)), change(m * C), gd(C), den(C) {}
};

struct Kernel {
    const Linear &p;
    int d, m, e;        // padded to whole panels
    long heads;         // of the whole batch
    Scratch weights;    // W, padded: (m d)
    explicit Kernel(const Linear &p)
        : p(p), d(round_up(p.d, N_R)), m(round_up(p.m, N_R)), e(round_up(p.e, N_R)), heads(p.batch * p.heads),
          weights(p.map == FAVOR ? (size_t)m * d : 1) {
        if (p.map == FAVOR)
            for (int f = 0; f < p.m; f++) std::memcpy(weights + (long)f * d, p.W + (long)f * p.d, sizeof(float) * p.d);
    }

    const float *row(const float *from, const int64_t *stride, long head, long t) const {
        return from + head / p.heads * stride[0] + head % p.heads * stride[1] + t * stride[2];
    }

    static void rows(const float *from, long stride, int n, int width, float *to, int ld) {
        for (int i = 0; i < n; i++) {
            std::memcpy(to + (long)i * ld, from + i * stride, sizeof(float) * width);
            std::memset(to + (long)i * ld + width, 0, sizeof(float) * (ld - width));
        }
        std::memset(to + (long)n * ld, 0, sizeof(float) * (C - n) * ld);
    }

    bool seen(long head, long t) const { return !p.valid || p.valid[head / p.heads * p.keys + t]; }

    // Tile `x` holds tokens by width; make the features of it, width or feature by token.
    void queries(Tiles &w, long head, long t, int n, const float *c) const {
        rows(row(p.q, p.q_stride, head, t), p.q_stride[2], n, p.d, w.x, d);
        project(w, w.phi_q);
        if (p.map == ELU) elu(w.phi_q, n);
        if (!exponential()) return;
        vec top[C / LANES];
        for (int j = 0; j < C / LANES; j++) top[j] = all(-INFINITY);
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) top[j] = greater(top[j], load(w.phi_q + f * C + j * LANES) + c[f]);
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) {
                float *at = w.phi_q + f * C + j * LANES;
                store(at, exp(load(at) + c[f] - top[j]));
            }
    }

    // The same for keys; `c` grows with them, and what was summed under the old shifts is rescaled.
    void keys(Tiles &w, long head, long t, int n, float *c, Sums *sums) const {
        rows(row(p.k, p.k_stride, head, t), p.k_stride[2], n, p.d, w.x, d);
        project(w, w.phi_k);
        if (p.map == ELU) elu(w.phi_k, n);
        if (!exponential()) {
            for (int j = 0; j < n; j++)
                if (!seen(head, t + j))
                    for (int f = 0; f < p.m; f++) w.phi_k[f * C + j] = 0;
            return;
        }
        vec norm[C / LANES];
        for (int j = 0; j < C / LANES; j++) norm[j] = vec{};
        for (int i = 0; p.map == FAVOR && i < p.d; i++)
            for (int j = 0; j < C / LANES; j++) {
                vec x = load(w.xT + i * C + j * LANES);
                norm[j] += x * x * p.half;
            }
        for (int j = 0; j < C; j++)
            if (j >= n || !seen(head, t + j)) norm[j / LANES][j % LANES] = INFINITY;
        for (int f = 0; f < p.m; f++) {
            vec top = all(c[f]);
            float *at = w.phi_k + f * C;
            for (int j = 0; j < C / LANES; j++) {
                vec x = load(at + j * LANES) - norm[j];
                store(at + j * LANES, x);
                top = greater(top, x);
            }
            float shift = largest(top);
            if (sums && shift > c[f]) {
                float scale = std::exp(c[f] - shift);
                sums->z[f] *= scale;
                for (int j = 0; j < e; j += LANES) store(sums->S + (long)f * e + j, load(sums->S + (long)f * e + j) * scale);
            }
            c[f] = shift;
            for (int j = 0; j < C / LANES; j++) store(at + j * LANES, exp(load(at + j * LANES) - shift));
        }
    }

    bool exponential() const { return p.map == FAVOR || p.map == LOGS; }

    // The tokens of tile `x`, projected where the map says so, feature by token.
    void project(Tiles &w, float *to) const {
        if (p.map != FAVOR) return transpose(w.x, C, d, to);
        transpose(w.x, C, d, w.xT);
        product<false>(p.m, C, p.d, {weights, d, 1}, {w.xT, C, N_R}, {to, C, N_R});
    }

    static vec elu(vec x) { return x > vec{} ? x + 1.0f : exp(x > vec{} ? vec{} : x); }

    // elu(x) + 1 of the first n tokens; the others have no features.
    void elu(float *phi, int n) const {
        for (int f = 0; f < p.m; f++) {
            for (int j = 0; j < C; j += LANES) store(phi + f * C + j, elu(load(phi + f * C + j)));
            for (int j = n; j < C; j++) phi[f * C + j] = 0;
        }
    }

    void values(Tiles &w, long head, long t, int n) const {
        rows(row(p.v, p.v_stride, head, t), p.v_stride[2], n, p.e, w.v, e);
        for (int j = 0; p.valid && j < n; j++)
            if (!seen(head, t + j)) std::memset(w.v + (long)j * e, 0, sizeof(float) * e);
    }

    // S += phi_k v, z += phi_k 1
    void remember(Tiles &w, Sums &s) const {
        product<true>(p.m, p.e, C, {w.phi_k, C, 1}, {w.v, e, N_R}, {s.S, e, N_R});
        for (int f = 0; f < p.m; f++) {
            vec x = vec{};
            for (int j = 0; j < C; j += LANES) x += load(w.phi_k + f * C + j);
            s.z[f] += sum(x);
        }
    }

    // P_ji = phi_k_j . phi_q_i for keys j up to query i, and zero for later ones.
    void weigh(Tiles &w) const {
        product<false, RESULT_UPPER>(C, C, p.m, {w.phi_k, 1, C}, {w.phi_q, C, N_R}, {w.P, C, N_R});
        for (int j = 0; j < C; j++) std::memset(w.P + (long)j * C, 0, sizeof(float) * j);
    }

    // out = (phi_q S + P v) / (phi_q z + P 1); true where a query that sees keys has a denominator in range.
    bool answer(Tiles &w, const Sums &s, long head, long t, int n, bool inside, bool any) const {
        product<false>(C, p.e, p.m, {w.phi_q, 1, C}, {s.S, e, N_R}, {w.out, e, N_R});
        vec total[C / LANES];
        for (int j = 0; j < C / LANES; j++) total[j] = vec{};
        for (int f = 0; f < p.m; f++)
            for (int j = 0; j < C / LANES; j++) total[j] += load(w.phi_q + f * C + j * LANES) * s.z[f];
        if (inside) {
            product<true, LEFT_LOWER>(C, p.e, C, {w.P, 1, C}, {w.v, e, N_R}, {w.out, e, N_R});
            for (int i = 0; i < C; i++)
                for (int j = 0; j < C / LANES; j++) total[j] += load(w.P + i * C + j * LANES);
        }
        bool fine = true;
        for (int i = 0; i < n; i++) {
            float den = total[i / LANES][i % LANES];
            any = any || (inside && seen(head, t + i));
            if (exponential() && any && den <= SMALLEST) fine = false;
            float over = den == 0 ? 0 : 1 / den;
            float *out = p.out + (head * p.queries + t + i) * p.e;
            for (int j = 0; j < p.e; j++) out[j] = w.out[i * e + j] * over;
            p.den[head * p.queries + t + i] = den;
        }
        return fine;
    }

    // g / den, and minus its product with out: the gradients of numerators and denominators.
    void gradients(Tiles &w, long head, long t, int n) const {
        std::memset(w.g.p, 0, sizeof(float) * C * e);
        for (int i = 0; i < C; i++) {
            long at = head * p.queries + t + i;
            float over = i < n && p.den[at] != 0 ? 1 / p.den[at] : 0, s = 0;
            for (int j = 0; i < n && j < p.e; j++) {
                w.g[i * e + j] = p.grad[at * p.e + j] * over;
                s += w.g[i * e + j] * p.out[at * p.e + j];
            }
            w.gd[i] = -s;
        }
    }

    // From the gradient of features, `change`, to that of queries or keys: dx = phi'(x)^T change.
    void pull_back(Tiles &w, const float *phi, long head, long t, int n, const float *from, const int64_t *stride,
                   float *to, long length, bool key) const {
        if (p.map == FAVOR) {
            vec total[C / LANES];
            for (int j = 0; j < C / LANES; j++) total[j] = vec{};
            for (int f = 0; f < p.m; f++)
                for (int j = 0; j < C / LANES; j++) {
                    float *at = w.change + f * C + j * LANES;
                    vec x = load(at) * load(phi + f * C + j * LANES);
                    store(at, x);
                    total[j] += x;
                }
            product<false>(C, p.d, p.m, {w.change, 1, C}, {weights, d, N_R}, {w.out, d, N_R});
            for (int i = 0; i < n; i++) {
                float *x = to + (head * length + t + i) * p.d, pull = key ? -2 * p.half * total[i / LANES][i % LANES] : 0;
                const float *k = row(from, stride, head, t + i);
                bool real = !key || seen(head, t + i);
                for (int j = 0; j < p.d; j++) x[j] = real ? w.out[i * d + j] + (key ? pull * k[j] : 0) : 0;
            }
            return;
        }
        for (int i = 0; i < n; i++) {
            float *x = to + (head * length + t + i) * p.d;
            bool real = !key || seen(head, t + i);
            for (int f = 0; f < p.d; f++) {
                float y = phi[f * C + i], slope = p.map == GIVEN ? 1 : p.map == LOGS ? y : std::min(y, 1.0f);
                x[f] = real ? w.change[f * C + i] * slope : 0;
            }
        }
    }
};

struct Stored {
    Scratch memory;
    const Kernel &kernel;
    Stored(const Kernel &kernel, long count)
        : memory(count * ((size_t)kernel.m * kernel.e + 2 * kernel.m)), kernel(kernel) {}
    Sums operator[](long i) const {
        size_t size = (size_t)kernel.m * kernel.e + 2 * kernel.m;
        float *S = memory + i * size;
        return {S, S + (size_t)kernel.m * kernel.e, S + (size_t)kernel.m * kernel.e + kernel.m};
    }
};

void clear(const Kernel &k, const Sums &s) {
    std::memset(s.S, 0, sizeof(float) * k.m * k.e);
    std::memset(s.z, 0, sizeof(float) * k.m);
    std::fill(s.c, s.c + k.m, NOTHING);
}

void read(const Kernel &k, long head, const Sums &to) {
    clear(k, to);
    if (!k.p.S0) return;
    for (int f = 0; f < k.p.m; f++) {
        std::memcpy(to.S + (long)f * k.e, k.p.S0 + (head * k.p.m + f) * k.p.e, sizeof(float) * k.p.e);
        to.z[f] = k.p.z0[head * k.p.m + f];
        if (k.exponential()) to.c[f] = k.p.c0[head * k.p.m + f];
    }
}

void write(const Kernel &k, long head, const Sums &from) {
    if (!k.p.S1) return;
    for (int f = 0; f < k.p.m; f++) {
        std::memcpy(k.p.S1 + (head * k.p.m + f) * k.p.e, from.S + (long)f * k.e, sizeof(float) * k.p.e);
        k.p.z1[head * k.p.m + f] = from.z[f];
        if (k.exponential()) k.p.c1[head * k.p.m + f] = from.c[f];
    }
}

// a += b, each under its own shifts
void join(const Kernel &k, const Sums &a, const Sums &b) {
    for (int f = 0; f < k.p.m; f++) {
        float c = std::max(a.c[f], b.c[f]), x = std::exp(a.c[f] - c), y = std::exp(b.c[f] - c);
        for (int j = 0; j < k.e; j++) a.S[(long)f * k.e + j] = x * a.S[(long)f * k.e + j] + y * b.S[(long)f * k.e + j];
        a.z[f] = x * a.z[f] + y * b.z[f];
        a.c[f] = c;
    }
}

bool any_key(const Kernel &k, const Sums &s) {
    for (int f = 0; f < k.p.m; f++)
        if (s.z[f] != 0) return true;
    return false;
}

// Sequences are cut into parts only where there are too few of them for all threads.
long parts_of(const Kernel &k, long length) {
    long wanted = (k.p.threads + k.heads - 1) / std::max(k.heads, 1L);
    return std::max(1L, std::min(wanted, length / (4 * C)));
}

struct Part {
    long first, last;
};

Part part(long i, long parts, long length) {
    long chunks = (length + C - 1) / C;
    return {std::min(length, chunks * i / parts * C), std::min(length, chunks * (i + 1) / parts * C)};
}

// What one part of a causal sequence starts with: the sums of all parts before it.
void start_parts(const Kernel &k, const Stored &sums, long parts, Tiles &w) {
#pragma omp for
    for (long i = 0; i < k.heads * parts; i++) {
        Sums s = sums[i];
        clear(k, s);
        Part range = part(i % parts, parts, k.p.keys);
        if (i % parts == parts - 1) continue;  // nothing comes after the last
        for (long t = range.first; t < range.last; t += C) {
            int n = std::min<long>(C, range.last - t);
            k.values(w, i / parts, t, n);
            k.keys(w, i / parts, t, n, s.c, &s);
            k.remember(w, s);
        }
    }
#pragma omp for
    for (long head = 0; head < k.heads; head++) {
        Stored now(k, 1), next(k, 1);
        size_t size = ((size_t)k.m * k.e + 2 * k.m) * sizeof(float);
        read(k, head, now[0]);
        for (long i = 0; i < parts; i++) {
            Sums s = sums[head * parts + i];
            std::memcpy(next[0].S, now[0].S, size);
            join(k, next[0], s);
            std::memcpy(s.S, now[0].S, size);
            std::memcpy(now[0].S, next[0].S, size);
        }
    }
}

// A_ji = v_j . g_i + gd_i for keys j up to query i, and zero for later ones; or its transpose.
void mix(Tiles &w, bool by_key) {
    if (by_key) product<false, RESULT_UPPER>(C, C, w.e, {w.v, w.e, 1}, {w.gT, C, N_R}, {w.A, C, N_R});
    else product<false>(C, C, w.e, {w.g, w.e, 1}, {w.vT, C, N_R}, {w.A, C, N_R});
    for (int x = 0; x < C; x++) {
        float *a = w.A + x * C;
        int first = by_key ? x : 0, last = by_key ? C : x + 1;
        for (int y = first; y < last; y++) a[y] += w.gd[by_key ? y : x];
        std::memset(a, 0, sizeof(float) * first);
        std::memset(a + last, 0, sizeof(float) * (C - last));
    }
}

// change += z (x) gd
void add_outer(Tiles &w, int m, const float *z, const float *gd) {
    for (int f = 0; f < m; f++)
        for (int j = 0; j < C; j += LANES) store(w.change + f * C + j, load(w.change + f * C + j) + load(gd + j) * z[f]);
}

// R += phi_q g, r += phi_q gd
void recall(const Kernel &k, Tiles &w, Sums &r) {
    product<true>(k.p.m, k.p.e, C, {w.phi_q, C, 1}, {w.g, k.e, N_R}, {r.S, k.e, N_R});
    for (int f = 0; f < k.p.m; f++) {
        vec x = vec{};
        for (int j = 0; j < C; j += LANES) x += load(w.phi_q + f * C + j) * load(w.gd + j);
        r.z[f] += sum(x);
    }
}

// Going backwards, what was recalled under the shifts of later chunks comes under those of an earlier one.
void lower(const Kernel &k, Sums &r, const float *c) {
    for (int f = 0; f < k.p.m; f++) {
        if (c[f] < r.c[f]) {
            float scale = std::exp(c[f] - r.c[f]);
            for (int j = 0; j < k.e; j++) r.S[(long)f * k.e + j] *= scale;
            r.z[f] *= scale;
        }
        r.c[f] = c[f];
    }
}

void unkey(const Kernel &k, Tiles &w, long head, long t, int n) {
    for (int j = 0; j < n; j++) {
        float *to = k.p.dv + (head * k.p.keys + t + j) * k.p.e;
        bool real = k.seen(head, t + j);
        for (int i = 0; i < k.p.e; i++) to[i] = real ? w.out[j * k.e + i] : 0;
    }
    k.pull_back(w, w.phi_k, head, t, n, k.p.k, k.p.k_stride, k.p.dk, k.p.keys, true);
}

}  // namespace

extern "C" int linear(const Linear *given) {
    Kernel k(*given);
    long parts = parts_of(k, given->keys), q_parts = parts_of(k, given->queries);
    Stored sums(k, k.heads * parts);
#pragma omp parallel num_threads(given->threads)
    {
        Tiles w(k.d, k.m, k.e);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            Sums s = sums[i];
            clear(k, s);
            Part range = part(i % parts, parts, given->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, i / parts, t, n);
                k.keys(w, i / parts, t, n, s.c, &s);
                k.remember(w, s);
            }
        }
#pragma omp for
        for (long head = 0; head < k.heads; head++) {
            for (long i = 1; i < parts; i++) join(k, sums[head * parts], sums[head * parts + i]);
            write(k, head, sums[head * parts]);
        }
#pragma omp for
        for (long i = 0; i < k.heads * q_parts; i++) {
            long head = i / q_parts;
            Sums s = sums[head * parts];
            Part range = part(i % q_parts, q_parts, given->queries);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.queries(w, head, t, n, s.c);
                k.answer(w, s, head, t, n, false, false);
            }
        }
    }
    return 0;
}

extern "C" int linear_backward(const Linear *given) {
    Kernel k(*given);
    long parts = parts_of(k, given->keys), q_parts = parts_of(k, given->queries);
    Stored sums(k, k.heads), pulls(k, k.heads * q_parts);
#pragma omp parallel num_threads(given->threads)
    {
        Tiles w(k.d, k.m, k.e);
#pragma omp for
        for (long head = 0; head < k.heads; head++) read(k, head, sums[head]);
#pragma omp for
        for (long i = 0; i < k.heads * q_parts; i++) {
            long head = i / q_parts;
            Sums s = sums[head], pull = pulls[i];
            clear(k, pull);
            Part range = part(i % q_parts, q_parts, given->queries);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.queries(w, head, t, n, s.c);
                k.gradients(w, head, t, n);
                transpose(w.g, C, k.e, w.gT);
                product<false>(given->m, C, given->e, {s.S, k.e, 1}, {w.gT, C, N_R}, {w.change, C, N_R});
                add_outer(w, given->m, s.z, w.gd);
                recall(k, w, pull);
                k.pull_back(w, w.phi_q, head, t, n, given->q, given->q_stride, given->dq, given->queries, false);
            }
        }
#pragma omp for
        for (long head = 0; head < k.heads; head++)
            for (long i = 1; i < q_parts; i++) join(k, pulls[head * q_parts], pulls[head * q_parts + i]);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Sums s = sums[head], pull = pulls[head * q_parts];
            Scratch c(k.m);
            std::memcpy(c.p, s.c, sizeof(float) * k.m);
            Part range = part(i % parts, parts, given->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, c, nullptr);
                transpose(w.v, C, k.e, w.vT);
                product<false>(given->m, C, given->e, {pull.S, k.e, 1}, {w.vT, C, N_R}, {w.change, C, N_R});
                for (int f = 0; f < given->m; f++)
                    for (int j = 0; j < C; j += LANES) store(w.change + f * C + j, load(w.change + f * C + j) + pull.z[f]);
                product<false>(C, given->e, given->m, {w.phi_k, 1, C}, {pull.S, k.e, N_R}, {w.out, k.e, N_R});
                unkey(k, w, head, t, n);
            }
        }
    }
    return 0;
}

extern "C" int linear_causal(const Linear *given) {
    Kernel k(*given);
    long parts = parts_of(k, given->keys);
    Stored sums(k, k.heads * parts);
    int failed = 0;
#pragma omp parallel num_threads(given->threads) reduction(| : failed)
    {
        Tiles w(k.d, k.m, k.e);
        start_parts(k, sums, parts, w);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Sums s = sums[i];
            bool any = any_key(k, s);
            Part range = part(i % parts, parts, given->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, s.c, &s);
                k.queries(w, head, t, n, s.c);
                k.weigh(w);
                failed |= !k.answer(w, s, head, t, n, true, any);
                for (int j = 0; j < n; j++) any = any || k.seen(head, t + j);
                k.remember(w, s);
            }
            if (i % parts == parts - 1) write(k, head, s);
        }
    }
    return failed;
}

extern "C" int linear_causal_backward(const Linear *given) {
    Kernel k(*given);
    long parts = parts_of(k, given->keys), chunks = (given->keys + C - 1) / C;
    Stored sums(k, k.heads * parts), pulls(k, k.heads * parts);
    Scratch shifts(k.heads * chunks * k.m);
#pragma omp parallel num_threads(given->threads)
    {
        Tiles w(k.d, k.m, k.e);
        start_parts(k, sums, parts, w);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Sums s = sums[i];
            Part range = part(i % parts, parts, given->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, s.c, &s);
                std::memcpy(shifts + (head * chunks + t / C) * k.m, s.c, sizeof(float) * k.m);
                k.queries(w, head, t, n, s.c);
                k.gradients(w, head, t, n);
                transpose(w.g, C, k.e, w.gT);
                mix(w, true);
                product<false>(given->m, C, given->e, {s.S, k.e, 1}, {w.gT, C, N_R}, {w.change, C, N_R});
                product<true>(given->m, C, C, {w.phi_k, C, 1}, {w.A, C, N_R}, {w.change, C, N_R});
                add_outer(w, given->m, s.z, w.gd);
                k.pull_back(w, w.phi_q, head, t, n, given->q, given->q_stride, given->dq, given->queries, false);
                k.remember(w, s);
            }
        }
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {  // what each part recalls for the parts before it
            long head = i / parts;
            Sums r = pulls[i];
            clear(k, r);
            Part range = part(i % parts, parts, given->keys);
            if (i % parts == 0) continue;
            for (long t = (range.last - 1) / C * C; t >= range.first && range.last > range.first; t -= C) {
                int n = std::min<long>(C, range.last - t);
                const float *c = shifts + (head * chunks + t / C) * k.m;
                lower(k, r, c);
                k.queries(w, head, t, n, c);
                k.gradients(w, head, t, n);
                recall(k, w, r);
            }
        }
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Stored own(k, 1);
            Sums r = own[0];
            clear(k, r);
            Part range = part(i % parts, parts, given->keys);
            for (long later = parts - 1; later > i % parts; later--) {
                Sums theirs = pulls[head * parts + later];
                Part there = part(later, parts, given->keys);
                if (there.last == there.first) continue;
                lower(k, r, shifts + (head * chunks + there.first / C) * k.m);
                for (long x = 0; x < (long)k.m * k.e; x++) r.S[x] += theirs.S[x];
                for (int f = 0; f < k.m; f++) r.z[f] += theirs.z[f];
            }
            for (long t = (range.last - 1) / C * C; t >= range.first && range.last > range.first; t -= C) {
                int n = std::min<long>(C, range.last - t);
                const float *c = shifts + (head * chunks + t / C) * k.m;
                Scratch fixed(k.m);
                std::memcpy(fixed.p, c, sizeof(float) * k.m);
                lower(k, r, c);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, fixed, nullptr);
                k.queries(w, head, t, n, c);
                k.gradients(w, head, t, n);
                transpose(w.v, C, k.e, w.vT);
                k.weigh(w);
                mix(w, false);
                product<false>(C, given->e, given->m, {w.phi_k, 1, C}, {r.S, k.e, N_R}, {w.out, k.e, N_R});
                product<true, LEFT_UPPER>(C, given->e, C, {w.P, C, 1}, {w.g, k.e, N_R}, {w.out, k.e, N_R});
                product<false>(given->m, C, given->e, {r.S, k.e, 1}, {w.vT, C, N_R}, {w.change, C, N_R});
                product<true>(given->m, C, C, {w.phi_q, C, 1}, {w.A, C, N_R}, {w.change, C, N_R});
                for (int f = 0; f < given->m; f++)
                    for (int j = 0; j < C; j += LANES) store(w.change + f * C + j, load(w.change + f * C + j) + r.z[f]);
                unkey(k, w, head, t, n);
                recall(k, w, r);
            }
        }
    }
    return 0;
}
