// The delta rule on a memory that fades: see ops/recurrence/delta_rule.py.
//
//     out_i = q_i^T S_i,    S_i = alpha_i S_(i-1) + k_i u_i^T,    u_i = beta_i (v_i - alpha_i S_(i-1)^T k_i)
//
// In a chunk that found S, with a_ji what is left at i of what j wrote and a_i what is left of S,
//
//     u_i = R_i + sum_(j < i) M_ji u_j,    R_i = beta_i r_i,    r_i = v_i - a_i S^T k_i,    M_ji = -beta_i a_ji k_j . k_i
//
// which is solved forward in cache, by rows in a block and by products between blocks; its gradient, backward.

#include "recurrence.h"

namespace {

constexpr int ROWS = M_R;  // of a block of the triangular system

struct Tiles {
    bool same = false;  // as in the chunk before: one decay for all tokens of a head
    Fading fading;
    Scratch q, k, values, log, beta, x, xT, a, N, M, P, r, u, out, g, gate, A, D, dR, dq, dk, y, flow, ST, dscale;
    const float *v = nullptr;
    Tiles(int d, int e, bool backward)
        : q(C * d), k(C * d), values(C * e), log(C + 1), beta(C + 1), x(C * d), xT(d * C), a(C * C), N(C * C), M(C * C), P(C * C),
          r(C * e), u(C * e), out(C * e), g(backward ? C * e : 0), gate(C * e), A(backward ? C * C : 0),
          D(backward ? C * C : 0), dR(backward ? C * e : 0), dq(backward ? C * d : 0), dk(backward ? C * d : 0),
          y(backward ? C * d : 0), flow(C), ST(backward ? (d > C ? d : C) * e : 0), dscale(backward ? e : 0) {}
};

struct Delta : Sequences {
    explicit Delta(const Recurrence &p) : Sequences(p) {}

    void read_keys(Tiles &w, long head, long t, int n) const {
        keys(head, t, n, w.k);
        w.v = values(head, t, n, w.values);
        numbers(p.beta, p.beta_stride, head, t, n, w.beta);
        bool constant = p.log_decay_stride[2] == 0 && n == C;
        if (!constant || !w.same) {
            numbers(p.log_decay, p.log_decay_stride, head, t, n, w.log);
            w.fading = Fading(w.log);
            between(w.log, w.a);
        }
        w.same = constant;
    }

    // u, from what the chunk found. N_ji = a_ji k_j . k_i
    void write_over(Tiles &w, int n, const float *S) const {
        transpose(w.k, C, d, w.xT);
        product<false, RESULT_UPPER>(n, n, p.d, {w.k, d, 1}, {w.xT, C, N_R}, {w.N, C, N_R});
        fade_between(w.a, w.N);
        for (int j = 0; j < n; j++) {
            w.N[j * C + j] = 0;
            for (int i = j / LANES * LANES; i < C; i += LANES) store(w.M + j * C + i, load(w.N + j * C + i) * -load(w.beta + i));
        }
        scale_rows(w.k, d, w.fading.since_start, w.x);
        product<false>(n, p.e, p.d, {w.x, d, 1}, {S, e, N_R}, {w.r, e, N_R});
        for (int i = 0; i < n; i++)
            for (int j = 0; j < e; j += LANES) {
                vec r = load(w.v + i * e + j) - load(w.r + i * e + j);
                store(w.r + i * e + j, r);
                store(w.u + i * e + j, r * w.beta[i]);
            }
        solve(w.M, n, w.u);
    }

    // u_i += sum_(j < i) M_ji u_j, a panel of columns at a time
    void solve(const float *M, int n, float *u) const {
        for (int first = 0; first < n; first += ROWS) {
            int last = std::min(first + ROWS, n);
            if (first) product<true>(last - first, p.e, first, {M + first, 1, C}, {u, e, N_R}, {u + first * e, e, N_R});
            for (int c = 0; c < e; c += N_R)
                for (int i = first + 1; i < last; i++) {
                    float *at = u + i * e + c;
                    vec x = load(at), y = load(at + LANES);
                    for (int j = first; j < i; j++) {
                        x += load(u + j * e + c) * M[j * C + i];
                        y += load(u + j * e + c + LANES) * M[j * C + i];
                    }
                    store(at, x);
                    store(at + LANES, y);
                }
        }
    }

    // u_j += sum_(i > j) M_ji u_i
    void solve_backward(const float *M, float *u) const {
        for (int first = (C - 1) / ROWS * ROWS; first >= 0; first -= ROWS) {
            int last = std::min(first + ROWS, C);
            if (last < C)
                product<true>(last - first, p.e, C - last, {M + first * C + last, C, 1}, {u + last * e, e, N_R}, {u + first * e, e, N_R});
            for (int c = 0; c < e; c += LANES)
                for (int j = last - 2; j >= first; j--) {
                    vec x = load(u + j * e + c);
                    for (int i = j + 1; i < last; i++) x += load(u + i * e + c) * M[j * C + i];
                    store(u + j * e + c, x);
                }
        }
    }

    void weigh(Tiles &w, int n) const {
        transpose(w.q, C, d, w.xT);
        product<false, RESULT_UPPER>(n, n, p.d, {w.k, d, 1}, {w.xT, C, N_R}, {w.P, C, N_R});
        fade_between(w.a, w.P);
    }

    void fade(const Fading &fading, float *S) const {
        for (int x = 0; x < p.d * e; x += LANES) store(S + x, load(S + x) * fading.whole);
    }

    // S <- what is left of it + k u^T
    void remember(Tiles &w, int n, float *S) const {
        fade(w.fading, S);
        scale_rows(w.k, d, w.fading.until_end, w.x);
        product<true>(p.d, p.e, n, {w.x, 1, d}, {w.u, e, N_R}, {S, e, N_R});
    }

    void forward(Tiles &w, long head) const {
        Scratch S((size_t)d * e);
        read_state(p.S0, head, S);
        w.same = false;
        for (long t = 0; t < p.length; t += C) {
            int n = std::min<long>(C, p.length - t);
            read_keys(w, head, t, n);
            queries(head, t, n, w.q);
            write_over(w, n, S);
            weigh(w, n);
            scale_rows(w.q, d, w.fading.since_start, w.q);
            product<false>(n, p.e, p.d, {w.q, d, 1}, {S, e, N_R}, {w.out, e, N_R});
            product<true, LEFT_LOWER>(n, p.e, n, {w.P, 1, C}, {w.u, e, N_R}, {w.out, e, N_R});
            answer(w.out, w.gate, head, t, n);
            remember(w, n, S);
        }
        write_state(S, head, p.S1);
    }

    // y = x state^T, each row times its share; also what each row adds to the flow of decays.
    void pull_state(Tiles &w, const float *x, const float *state, const float *share, const float *read, float *terms) const {
        transpose(state, d, e, w.ST);
        product<false>(C, p.d, p.e, {x, e, 1}, {w.ST, d, N_R}, {w.y, d, N_R});
        scale_rows(w.y, d, share, w.y);
        for (int i = 0; i < C; i++) {
            vec sums = vec{};
            for (int c = 0; c < d; c += LANES) sums += load(w.y + i * d + c) * load(read + i * d + c);
            terms[i] = sum(sums);
        }
    }

    void backward_chunk(Tiles &w, const float *S, float *dS) const {
        const Fading &fading = w.fading;
        float reads[C], recalls[C], writes[C];
        write_over(w, C, S);
        weigh(w, C);
        // du = P g + what the chunk leaves
        scale_rows(w.k, d, fading.until_end, w.x);
        product<false>(C, p.e, p.d, {w.x, d, 1}, {dS, e, N_R}, {w.dR, e, N_R});
        product<true, LEFT_UPPER>(C, p.e, C, {w.P, C, 1}, {w.g, e, N_R}, {w.dR, e, N_R});
        solve_backward(w.M, w.dR);
        // gradients of weights, and of the system
        transpose(w.g, C, e, w.ST);
        product<false, RESULT_UPPER>(C, C, p.e, {w.u, e, 1}, {w.ST, C, N_R}, {w.A, C, N_R});
        keep_upper(w.A);
        transpose(w.dR, C, e, w.ST);
        product<false, RESULT_UPPER>(C, C, p.e, {w.u, e, 1}, {w.ST, C, N_R}, {w.D, C, N_R});
        keep_upper(w.D);
        for (int i = 0; i < C; i++) {
            vec sums = vec{};
            for (int j = 0; j < e; j += LANES) sums += load(w.dR + i * e + j) * load(w.r + i * e + j);
            w.flow[i] = sum(sums);
        }
        for (int j = 0; j < C; j++)
            for (int i = 0; i < C; i += LANES) {
                vec D = -load(w.D + j * C + i);
                store(w.flow + i, load(w.flow + i) + D * load(w.N + j * C + i));
                store(w.D + j * C + i, D * load(w.beta + i));
            }
        float dbeta[C];
        std::memcpy(dbeta, w.flow, sizeof(dbeta));
        scale_rows(w.dR, e, w.beta, w.dR);  // from here on the gradient of r, which is that of v
        // through the state
        pull_state(w, w.g, S, fading.since_start, w.q, reads);
        std::memcpy(w.dq, w.y, sizeof(float) * C * d);
        pull_state(w, w.dR, S, fading.since_start, w.k, recalls);
        for (int x = 0; x < C * d; x += LANES) store(w.dk + x, -load(w.y + x));
        pull_state(w, w.u, dS, fading.until_end, w.k, writes);
        add_to(w.dk, w.y, C * d);
        // the flow through the decays
        vec through = vec{};
        for (int x = 0; x < p.d * e; x += LANES) through += load(S + x) * load(dS + x);
        float all_through = sum(through) * fading.whole, before = 0, after = 0;
        for (int i = 0; i < C; i++) {
            w.flow[i] = all_through + before;
            before += writes[i];
        }
        for (int i = C - 1; i >= 0; i--) w.flow[i] += after += reads[i] - recalls[i];
        flow_between(w.P, w.A, w.flow, 1);
        flow_between(w.N, w.D, w.flow, 1);
        // within the chunk
        multiply(w.A, w.a, C * C, w.A);
        multiply(w.D, w.a, C * C, w.D);
        for (int j = 0; j < C; j++) w.D[j * C + j] = 0;
        product<true, LEFT_LOWER>(C, p.d, C, {w.A, 1, C}, {w.k, d, N_R}, {w.dq, d, N_R});
        product<true, LEFT_UPPER>(C, p.d, C, {w.A, C, 1}, {w.q, d, N_R}, {w.dk, d, N_R});
        product<true, LEFT_LOWER>(C, p.d, C, {w.D, 1, C}, {w.k, d, N_R}, {w.dk, d, N_R});
        product<true, LEFT_UPPER>(C, p.d, C, {w.D, C, 1}, {w.k, d, N_R}, {w.dk, d, N_R});
        // what the chunk found
        fade(fading, dS);
        scale_rows(w.q, d, fading.since_start, w.x);
        product<true>(p.d, p.e, C, {w.x, 1, d}, {w.g, e, N_R}, {dS, e, N_R});
        for (int i = 0; i < C; i++)
            for (int c = 0; c < d; c += LANES) store(w.x + i * d + c, load(w.k + i * d + c) * -fading.since_start[i]);
        product<true>(p.d, p.e, C, {w.x, 1, d}, {w.dR, e, N_R}, {dS, e, N_R});
        std::memcpy(w.beta, dbeta, sizeof(dbeta));
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
            read_keys(w, head, t, C);
            write_over(w, C, S);
            std::memcpy(S + size, S, sizeof(float) * size);
            remember(w, C, S + size);
        }
        read_state(p.grad_S1, head, dS);
        for (long t = (chunks - 1) * C; t >= 0; t -= C) {
            int n = std::min<long>(C, p.length - t);
            read_keys(w, head, t, n);
            queries(head, t, n, w.q);
            gradients(head, t, n, w.g, w.out, w.gate, w.dscale);
            backward_chunk(w, states + size * (t / C), dS);
            write_pulled(w.dq, w.x, p.q, p.q_stride, p.q_scale, head, t, n, p.dq);
            write_pulled(w.dk, w.x, p.k, p.k_stride, 1, head, t, n, p.dk);
            write_values(w.dR, w.out, head, t, n);
            write(w.beta, 1, head, t, n, 1, p.dbeta);
            if (p.dlog_decay) write(w.flow, 1, head, t, n, 1, p.dlog_decay);
        }
        write_scale(w.dscale, head);
        write_state(dS, head, p.dS0);
    }
};

}  // namespace

extern "C" int delta(const Recurrence *call) { return each_head<Delta, Tiles>(*call, false); }

extern "C" int delta_backward(const Recurrence *call) { return each_head<Delta, Tiles>(*call, true); }
