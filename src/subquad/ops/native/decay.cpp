// Causal linear products whose past fades: see ops/recurrence/decay.py.
//
//     out_i = sum_(j <= i) (sum_c q_ic a_ijc k_jc) v_j,    a_ij the product of the decays after j, up to i
//
// Tokens are taken C at a time, and a state carries what is left of earlier chunks. The gradient of the
// logarithm of a decay is the flow through it: the sum of all that was written before and is read after, each
// term once. It is never had as a difference of sums.

#include "recurrence.h"

namespace {

constexpr int BLOCK = 16;  // tokens between which channels fade one product at a time

// The tiles of one thread.
struct Tiles {
    bool backward;
    bool same = false;  // as in the chunk before: one decay for all tokens of a head
    Fading fading;      // one decay for all channels
    Scratch q, k, values, log, since, until, x, xT, fade, alpha, P, a, out, g, gate, A, dq, dk, dv, flow, ST, dscale, faded, whole;
    const float *v = nullptr;
    Tiles(int d, int e, bool backward)
        : backward(backward), q(C * d), k(C * d), values(C * e), log(C * d + C), since(C * d), until(C * d), x(C * d), xT(d * C + N_R), fade(C * d),
          alpha(C * d), P(C * C + N_R), a(C * C), out(C * e), g(backward ? C * e : 0), gate(C * e),
          A(backward ? C * C + N_R : 0), dq(backward ? C * d : 0), dk(backward ? C * d : 0), dv(backward ? C * e : 0),
          flow(backward ? C * d : 0), ST(backward ? (d > C ? d : C) * e : 0), dscale(backward ? e : 0), faded((BLOCK + 1) * d), whole(d) {}
};

struct Decayed : Sequences {
    bool by_channel;
    explicit Decayed(const Recurrence &p) : Sequences(p), by_channel(p.channels > 1 || p.root != 0) {}

    // Keys, values and what is left over the chunk.
    void read_keys(Tiles &w, long head, long t, int n) const {
        keys(head, t, n, w.k);
        w.v = values(head, t, n, w.values);
        if (by_channel) return read_channels(w, head, t, n);
        bool constant = p.log_decay_stride[2] == 0 && n == C;
        if (!constant || !w.same) {
            numbers(p.log_decay, p.log_decay_stride, head, t, n, w.log);
            w.fading = Fading(w.log);
            std::fill(w.whole + 0, w.whole + d, w.fading.whole);
            between(w.log, w.a);
        }
        w.same = constant;
    }

    // Products of decays are as exact as exponentials of sums within a chunk, and cost next to nothing.
    void read_channels(Tiles &w, long head, long t, int n) const {
        const float *decays = where(p.log_decay, p.log_decay_stride, head, t, n, p.d, d, w.log, p.decays_dtype);
        for (int x = 0; x < n * d; x += LANES) {
            vec log = load(decays + x);
            store(w.alpha + x, exp(p.root ? log_sigmoid(log) * p.root : log));
        }
        std::fill(w.alpha + n * d, w.alpha + C * d, 1.0f);
        for (int c = 0; c < d; c += LANES) {
            start(w, 0, C, c, w.since);
            end(w, 0, C, c, w.until);
        }
        std::memcpy(w.whole, w.since + (C - 1) * d, sizeof(float) * d);
    }

    // Rows times what is left, since the chunk's start or until its end; in place or not.
    void since_start(const Tiles &w, const float *from, float *to) const {
        if (by_channel) multiply(from, w.since, C * d, to);
        else scale_rows(from, d, w.fading.since_start, to);
    }

    void until_end(const Tiles &w, const float *from, float *to) const {
        if (by_channel) multiply(from, w.until, C * d, to);
        else scale_rows(from, d, w.fading.until_end, to);
    }

    // What is left at tokens from `first` on of what stood before it, for the channels at c.
    void start(Tiles &w, int first, int size, int c, float *to) const {
        vec left = all(1);
        for (int i = first; i < first + size; i++) {
            left *= load(w.alpha + i * d + c);
            store(to + i * d + c, left);
        }
    }

    // What is left of what they wrote at the last of `size` tokens.
    void end(Tiles &w, int first, int size, int c, float *to) const {
        vec left = all(1);
        for (int j = first + size - 1; j >= first; j--) {
            store(to + j * d + c, left);
            left *= load(w.alpha + j * d + c);
        }
    }

    // S <- what is left of it + k v^T
    void remember(Tiles &w, int n, float *S) const {
        fade_state(w.whole, S);
        until_end(w, w.k, w.x);
        product<true>(p.d, p.e, n, {w.x, 1, d}, {w.v, e, N_R}, {S, e, N_R});
    }

    // P_ji: the weight of key j at query i, of n; zero where i < j.
    void weigh(Tiles &w, int n) const {
        if (by_channel) {
            for (int size = BLOCK; size < C; size *= 2) {
                if (size >= n) continue;
                halves(w, size);
                for (int first = 0; first < C; first += 2 * size) {
                    int second = first + size;
                    transpose(w.x + second * d, size, d, w.xT);
                    product<false>(size, size, p.d, {w.x + first * d, d, 1}, {w.xT, size, N_R}, {w.P + first * C + second, C, N_R});
                }
            }
            keep_upper(w.P);
            for (int first = 0; first < n; first += BLOCK) weigh_row<0>(w, first);
            return;
        }
        transpose(w.q, C, d, w.xT);
        product<false, RESULT_UPPER>(n, n, p.d, {w.k, d, 1}, {w.xT, C, N_R}, {w.P, C, N_R});
        fade_between(w.a, w.P);
    }

    // x: keys as they are left at the end of a first half, queries by what is left of that at them.
    void halves(Tiles &w, int size) const {
        for (int first = 0; first < C; first += 2 * size)
            for (int c = 0; c < d; c += LANES) {
                end(w, first, size, c, w.fade);
                start(w, first + size, size, c, w.fade);
            }
        for (int i = 0; i < C; i++) {
            const float *from = (i / size % 2 ? w.q : w.k) + i * d;
            for (int c = 0; c < d; c += LANES) store(w.x + i * d + c, load(from + c) * load(w.fade + i * d + c));
        }
    }

    // The weights between tokens of one block, from its key j on. Loops of fixed length keep the totals in registers.
    template <int j>
    void weigh_row(Tiles &w, int first) const {
        if constexpr (j < BLOCK) {
            vec totals[BLOCK] = {};
            const long from = (long)(first + j) * d;
            for (int c = 0; c < d; c += LANES) {
                vec x = load(w.k + from + c);
                totals[0] += x * load(w.q + from + c);
#pragma GCC unroll 16
                for (int i = 1; i < BLOCK - j; i++) {
                    x *= load(w.alpha + from + i * d + c);
                    totals[i] += x * load(w.q + from + i * d + c);
                }
            }
            float found[BLOCK];
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK - j; i += LANES) store(found + i, sums(*(vec(*)[LANES])(totals + i)));
            copy(w.P + (first + j) * C + first + j, found, BLOCK - j);
            weigh_row<j + 1>(w, first);
        }
    }

    void forward(Tiles &w, long head) const {
        Scratch S((size_t)d * e);
        read_state(p.S0, head, S);
        w.same = false;
        for (long t = 0; t < p.length; t += C) {
            int n = std::min<long>(C, p.length - t);
            read_keys(w, head, t, n);
            queries(head, t, n, w.q);
            weigh(w, n);
            since_start(w, w.q, w.q);
            product<false>(n, p.e, p.d, {w.q, d, 1}, {S, e, N_R}, {w.out, e, N_R});
            product<true, LEFT_LOWER>(n, p.e, n, {w.P, 1, C}, {w.v, e, N_R}, {w.out, e, N_R});
            answer(w.out, w.gate, head, t, n);
            remember(w, n, S);
        }
        write_state(S, head, p.S1);
    }

    // Through the weights between tokens of different halves.
    void pull_halves(Tiles &w, int size) const {
        halves(w, size);
        for (int first = 0; first < C; first += 2 * size) {
            int second = first + size;
            const float *A = w.A + first * C + second;
            product<false>(size, p.d, size, {A, C, 1}, {w.x + second * d, d, N_R}, {w.xT + first * d, d, N_R});
            product<false>(size, p.d, size, {A, 1, C}, {w.x + first * d, d, N_R}, {w.xT + second * d, d, N_R});
            multiply(w.xT + first * d, w.fade + first * d, 2 * size * d, w.xT + first * d);
            add_to(w.dk + first * d, w.xT + first * d, size * d);
            add_to(w.dq + second * d, w.xT + second * d, size * d);
            written(w, w.xT, first, size);
            read(w, w.xT, second, size);
        }
    }

    // What tokens wrote, which is gone through all decays after theirs; what others read, through all before.
    void written(Tiles &w, const float *dk, int first, int size) const {
        for (int c = 0; c < d; c += LANES) {
            vec total = vec{};
            for (int j = first; j < first + size; j++) {
                store(w.flow + j * d + c, load(w.flow + j * d + c) + total);
                total += load(w.k + j * d + c) * load(dk + j * d + c);
            }
        }
    }

    void read(Tiles &w, const float *dq, int first, int size) const {
        for (int c = 0; c < d; c += LANES) {
            vec total = vec{};
            for (int i = first + size - 1; i >= first; i--) {
                total += load(w.q + i * d + c) * load(dq + i * d + c);
                store(w.flow + i * d + c, load(w.flow + i * d + c) + total);
            }
        }
    }

    void pull_block(Tiles &w, int first) const {
        const int last = first + BLOCK;
        for (int j = first; j < last; j++)
            for (int c = 0; c < d; c += LANES) {
                vec x = load(w.k + j * d + c), r = vec{}, own = all(w.A[j * C + j]);
                store(w.dq + j * d + c, load(w.dq + j * d + c) + own * x);
                for (int i = j + 1; i < last; i++) {
                    store(w.faded + (i - first) * d + c, x);  // as token i finds it
                    x *= load(w.alpha + i * d + c);
                    store(w.dq + i * d + c, load(w.dq + i * d + c) + x * w.A[j * C + i]);
                }
                for (int i = last - 1; i > j; i--) {
                    r = (r + load(w.q + i * d + c) * w.A[j * C + i]) * load(w.alpha + i * d + c);
                    store(w.flow + i * d + c, load(w.flow + i * d + c) + r * load(w.faded + (i - first) * d + c));
                }
                store(w.dk + j * d + c, load(w.dk + j * d + c) + r + own * load(w.q + j * d + c));
            }
    }

    // Through the weights within the chunk; `A` holds their gradients where i >= j.
    void pull_inside(Tiles &w) const {
        if (by_channel) {
            for (int size = BLOCK; size < C; size *= 2) pull_halves(w, size);
            for (int first = 0; first < C; first += BLOCK) pull_block(w, first);
            return;
        }
        flow_between(w.P, w.A, w.flow, d);
        multiply(w.A, w.a, C * C, w.A);
        product<true, LEFT_LOWER>(C, p.d, C, {w.A, 1, C}, {w.k, d, N_R}, {w.dq, d, N_R});
        product<true, LEFT_UPPER>(C, p.d, C, {w.A, C, 1}, {w.q, d, N_R}, {w.dk, d, N_R});
    }

    void write_decays(const Tiles &w, long head, long t, int n) const {
        if (!p.dlog_decay) return;
        if (by_channel) {
            tokens(p.log_decay, p.log_decay_stride, head, t, n, p.d, d, w.x);
            for (int x = 0; p.root && x < n * d; x += LANES)
                store(w.flow + x, load(w.flow + x) * sigmoid(-load(w.x + x)) * p.root);
            return write(w.flow, d, head, t, n, p.d, p.dlog_decay);
        }
        for (int i = 0; i < n; i++) {
            vec sums = vec{};
            for (int c = 0; c < d; c += LANES) sums += load(w.flow + i * d + c);
            p.dlog_decay[head * p.length + t + i] = ::sum(sums);
        }
    }

    void backward(Tiles &w, long head) const {
        const size_t size = (size_t)d * e;
        const long chunks = (p.length + C - 1) / C;
        Scratch states(size * (chunks + 1)), dS(size);  // what each chunk finds
        read_state(p.S0, head, states);
        w.same = false;
        std::memset(w.dscale, 0, sizeof(float) * e);
        for (long t = 0; t + C < p.length; t += C) {
            float *S = states + size * (t / C);
            std::memcpy(S + size, S, sizeof(float) * size);
            read_keys(w, head, t, C);
            remember(w, C, S + size);
        }
        read_state(p.grad_S1, head, dS);
        for (long t = (chunks - 1) * C; t >= 0; t -= C) {
            int n = std::min<long>(C, p.length - t);
            const float *S = states + size * (t / C);
            read_keys(w, head, t, n);
            queries(head, t, n, w.q);
            gradients(head, t, n, w.g, w.out, w.gate, w.dscale);
            weigh(w, C);
            transpose(w.g, C, e, w.ST);
            product<false, RESULT_UPPER>(C, C, p.e, {w.v, e, 1}, {w.ST, C, N_R}, {w.A, C, N_R});
            keep_upper(w.A);

            transpose(S, d, e, w.ST);
            product<false>(C, p.d, p.e, {w.g, e, 1}, {w.ST, d, N_R}, {w.dq, d, N_R});
            since_start(w, w.dq, w.dq);
            transpose(dS, d, e, w.ST);
            product<false>(C, p.d, p.e, {w.v, e, 1}, {w.ST, d, N_R}, {w.dk, d, N_R});
            until_end(w, w.dk, w.dk);
            until_end(w, w.k, w.x);
            product<false>(C, p.e, p.d, {w.x, d, 1}, {dS, e, N_R}, {w.dv, e, N_R});
            product<true, LEFT_UPPER>(C, p.e, C, {w.P, C, 1}, {w.g, e, N_R}, {w.dv, e, N_R});

            for (int c = 0; c < d; c++) {
                vec through = vec{};
                for (int j = 0; j < e; j += LANES) through += load(S + (long)c * e + j) * load(dS + (long)c * e + j);
                w.flow[c] = sum(through) * w.whole[c];
            }
            for (int i = 1; i < C; i++) std::memcpy(w.flow + i * d, w.flow, sizeof(float) * d);
            written(w, w.dk, 0, C);
            read(w, w.dq, 0, C);
            pull_inside(w);

            fade_state(w.whole, dS);
            since_start(w, w.q, w.q);
            product<true>(p.d, p.e, C, {w.q, 1, d}, {w.g, e, N_R}, {dS, e, N_R});
            write_pulled(w.dq, w.x, p.q, p.q_stride, p.q_scale, head, t, n, p.dq);
            write_pulled(w.dk, w.x, p.k, p.k_stride, 1, head, t, n, p.dk);
            write_values(w.dv, w.out, head, t, n);
            write_decays(w, head, t, n);
        }
        write_scale(w.dscale, head);
        write_state(dS, head, p.dS0);
    }
};

}  // namespace

extern "C" int decayed(const Recurrence *call) { return each_head<Decayed, Tiles>(*call, false); }

extern "C" int decayed_backward(const Recurrence *call) { return each_head<Decayed, Tiles>(*call, true); }
