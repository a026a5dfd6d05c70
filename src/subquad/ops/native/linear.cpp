// Averages of values under a kernel that factorises, a(q, k) = phi(q) . phi(k): see ops/linear_attention/sums.py.
//
//     out_i = sum_j a(q_i, k_j) v_j / sum_j a(q_i, k_j)
//
// Tokens are taken C at a time, and features are made where they are used, never stored: forward and backward
// need memory for the inputs, the outputs, and a few tiles for each thread. Features lie as the inputs do, a token
// a row: of two factors of a product one has to lie along its sum, and that is the smaller or the hotter one.
//
// Exponential features carry a shift c_f for each feature, the largest exponent of any key so far, and one for
// each query. In a causal chunk later keys share the shift: where that would leave a query less than SMALLEST,
// the kernel says so, and the caller takes shorter chunks.

#include "linear.h"

namespace {

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

// A_ji = v_j . g_i + gd_i for keys j up to query i.
void mix(const Kernel &k, Tiles &w) {
    transpose(w.g, w.e, C, w.e, w.turned, C);
    product<false, RESULT_UPPER>(C, C, k.p.e, {w.v.p, w.v.row, 1}, {w.turned, C, N_R}, {w.A, C, N_R});
    for (int j = 0; j < C; j++)
        for (int i = j / LANES * LANES; i < C; i += LANES) store(w.A + j * C + i, load(w.A + j * C + i) + load(w.gd + i));
    k.keep_upper(w.A);
}

// change = rows S^T
void through(const Kernel &k, Tiles &w, View rows) {
    product<false>(C, k.p.m, k.p.e, {rows.p, rows.row, 1}, {w.turned_sums, k.f, N_R}, {w.change, k.f, N_R});
}

void turn(const Kernel &k, Tiles &w, const Sums &s) { transpose(s.S, k.e, k.m, k.e, w.turned_sums, k.f); }

// R += phi_q^T g, r += phi_q^T gd
void recall(const Kernel &k, Tiles &w, Sums &r) {
    product<true>(k.p.m, k.p.e, C, {w.phi_q, 1, k.f}, {w.g, k.e, N_R}, {r.S, k.e, N_R});
    for (int j = 0; j < k.m; j += LANES) {
        vec x = load(r.z + j);
        for (int i = 0; i < C; i++) x += load(w.phi_q + i * k.f + j) * w.gd[i];
        store(r.z + j, x);
    }
}

void unquery(const Kernel &k, Tiles &w, const Sums &s, long head, long t, int n) {
    const long first = head * k.p.queries + t;
    k.deliver(k.pull_back(w, w.phi_q, s.z, w.gd, first, n, k.p.dq), w.out, k.p.d, first, n, k.p.dq);
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

// Zeros for padding.
void hide(const Kernel &k, Result rows, int width, long head, long t, int n) {
    for (int i = 0; i < n; i++)
        if (!k.seen(head, t + i)) std::memset(rows.p + i * rows.row, 0, sizeof(float) * width);
}

// dv = phi_k R + P^T g, where there are pairs inside, and dk
void unkey(const Kernel &k, Tiles &w, const Sums &r, long head, long t, int n, bool inside) {
    const long first = head * k.p.keys + t;
    Result dv = k.result(k.p.dv, k.p.e, k.e, first, n, w.out);
    product<false>(C, k.p.e, k.p.m, {w.phi_k, k.f, 1}, {r.S, k.e, N_R}, dv);
    if (inside) product<true, LEFT_UPPER>(C, k.p.e, C, {w.P, C, 1}, {w.g, k.e, N_R}, dv);
    hide(k, dv, k.e, head, t, n);
    k.deliver(dv, w.out, k.p.e, first, n, k.p.dv);
    float ones[C];
    std::fill(ones, ones + C, 1.0f);
    Result dk = k.pull_back(w, w.phi_k, r.z, ones, first, n, k.p.dk);
    for (int i = 0; i < n && k.p.kind == FAVOR; i++) {  // through -|k|^2 / (2 sqrt(d))
        vec total = vec{};
        for (int j = 0; j < k.m; j += LANES) total += load(w.change + i * k.f + j);
        float *own = dk.p + i * dk.row;
        blend(own, own, 1, w.k.p + i * w.k.row, -2 * k.p.half * sum(total), k.p.d);
    }
    hide(k, dk, k.d, head, t, n);
    k.deliver(dk, w.out, k.p.d, first, n, k.p.dk);
}

}  // namespace

extern "C" int linear(const Linear *call) {
    Kernel k(*call);
    long parts = parts_of(k, call->keys), q_parts = parts_of(k, call->queries);
    Stored sums(k, k.heads * parts);
#pragma omp parallel num_threads(call->threads)
    {
        Tiles w(k.d, k.m, k.e, k.f);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            Sums s = sums[i];
            clear(k, s);
            Part range = part(i % parts, parts, call->keys);
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
            Part range = part(i % q_parts, q_parts, call->queries);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.queries(w, head, t, n, s.c);
                k.answer(w, s, head, t, n, false, false);
            }
        }
    }
    return 0;
}

extern "C" int linear_backward(const Linear *call) {
    Kernel k(*call);
    long parts = parts_of(k, call->keys), q_parts = parts_of(k, call->queries);
    Stored sums(k, k.heads), pulls(k, k.heads * q_parts);
#pragma omp parallel num_threads(call->threads)
    {
        Tiles w(k.d, k.m, k.e, k.f);
#pragma omp for
        for (long head = 0; head < k.heads; head++) read(k, head, sums[head]);
#pragma omp for
        for (long i = 0; i < k.heads * q_parts; i++) {
            long head = i / q_parts;
            Sums s = sums[head], pull = pulls[i];
            clear(k, pull);
            turn(k, w, s);
            Part range = part(i % q_parts, q_parts, call->queries);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.queries(w, head, t, n, s.c);
                k.gradients(w, head, t, n);
                through(k, w, {w.g, k.e});
                unquery(k, w, s, head, t, n);
                recall(k, w, pull);
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
            turn(k, w, pull);
            Part range = part(i % parts, parts, call->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, c, nullptr);
                through(k, w, w.v);
                unkey(k, w, pull, head, t, n, false);
            }
        }
    }
    return 0;
}

extern "C" int linear_causal(const Linear *call) {
    Kernel k(*call);
    long parts = parts_of(k, call->keys);
    Stored sums(k, k.heads * parts);
    int failed = 0;
#pragma omp parallel num_threads(call->threads) reduction(| : failed)
    {
        Tiles w(k.d, k.m, k.e, k.f);
        start_parts(k, sums, parts, w);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Sums s = sums[i];
            bool any = any_key(k, s);
            Part range = part(i % parts, parts, call->keys);
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

extern "C" int linear_causal_backward(const Linear *call) {
    Kernel k(*call);
    long parts = parts_of(k, call->keys), chunks = (call->keys + C - 1) / C;
    Stored sums(k, k.heads * parts), pulls(k, k.heads * parts);
    Scratch shifts(k.heads * chunks * k.m);
#pragma omp parallel num_threads(call->threads)
    {
        Tiles w(k.d, k.m, k.e, k.f);
        start_parts(k, sums, parts, w);
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {
            long head = i / parts;
            Sums s = sums[i];
            Part range = part(i % parts, parts, call->keys);
            for (long t = range.first; t < range.last; t += C) {
                int n = std::min<long>(C, range.last - t);
                k.values(w, head, t, n);
                k.keys(w, head, t, n, s.c, &s);
                std::memcpy(shifts + (head * chunks + t / C) * k.m, s.c, sizeof(float) * k.m);
                k.queries(w, head, t, n, s.c);
                k.gradients(w, head, t, n);
                mix(k, w);
                turn(k, w, s);
                through(k, w, {w.g, k.e});
                product<true, LEFT_LOWER>(C, call->m, C, {w.A, 1, C}, {w.phi_k, k.f, N_R}, {w.change, k.f, N_R});
                unquery(k, w, s, head, t, n);
                k.remember(w, s);
            }
        }
#pragma omp for
        for (long i = 0; i < k.heads * parts; i++) {  // what each part recalls for the parts before it
            long head = i / parts;
            Sums r = pulls[i];
            clear(k, r);
            Part range = part(i % parts, parts, call->keys);
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
            Part range = part(i % parts, parts, call->keys);
            for (long later = parts - 1; later > i % parts; later--) {
                Sums theirs = pulls[head * parts + later];
                Part there = part(later, parts, call->keys);
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
                k.weigh(w);
                mix(k, w);
                turn(k, w, r);
                through(k, w, w.v);
                product<true, LEFT_UPPER>(C, call->m, C, {w.A, C, 1}, {w.phi_q, k.f, N_R}, {w.change, k.f, N_R});
                unkey(k, w, r, head, t, n, true);
                recall(k, w, r);
            }
        }
    }
    return 0;
}
