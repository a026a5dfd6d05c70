"""The delta rule: a matrix that, for each key, puts a new value in the place of the one it would recall.

    out_i = q_i^T S_i,    S_i = alpha_i S_(i-1) + k_i u_i^T,    u_i = beta_i (v_i - alpha_i S_(i-1)^T k_i)

which is S_i = (I - beta_i k_i k_i^T) alpha_i S_(i-1) + beta_i k_i v_i^T: with |k_i| = 1 and beta_i = 1, k_i
then recalls v_i exactly. Where a chunk found S, with a_ij what is left at i of what j wrote, and a_i what is
left of S, the u solve a triangular system:

    u_i + sum_(j < i) beta_i a_ij (k_i . k_j) u_j = beta_i (v_i - a_i S^T k_i)

Solved once for both parts of the right side, u = u_own - w S is one product once S is known, and the chunk
behaves as in `decay.py` with u for v: the WY form of a product of Householder matrices.

`blocks.py` runs it over blocks of tokens; the compiled kernels are in native/delta.cpp.

Yang, Wang, Zhang, Shen, Kim: Parallelizing Linear Transformers with the Delta Rule over Sequence Length.
NeurIPS 2024, arXiv:2406.06484, section 3. Yang, Kautz, Hatamizadeh: Gated Delta Networks. ICLR 2025,
arXiv:2412.06464, section 3.3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.recurrence.decay import (
    Fading,
    Matrix,
    Queries,
    Values,
    across,
    between,
    chunk_outputs,
    chunked,
    earlier,
    fade,
    later,
    once,
    unchunked,
)

Betas = Float[Tensor, "b h t 1"]
LogDecays = Float[Tensor, "#b #h t 1"]  # at most 0


def advance(
    q: Queries, k: Queries, v: Values, beta: Betas, log_decay: LogDecays, *, state: Matrix
) -> tuple[Values, Matrix]:
    """A block of tokens, its chunks side by side."""
    chunk = Chunks.of(k, v, beta, log_decay, state=state)
    q, length = chunked(q), q.shape[2]
    weights = (q @ chunk.k.mT).mul_(chunk.left)
    out = chunk_outputs(weights, chunk.u, q * chunk.fading.since_start, chunk.found)
    return unchunked(out, length), chunk.last


class Chunks(NamedTuple):
    """A block's chunks, and what the rule does in them."""

    k: Float[Tensor, "b h n c d"]
    beta: Float[Tensor, "b h n c 1"]
    fading: Fading
    left: Float[Tensor, "#b #h #n c c"]  # a_ij
    alike: Float[Tensor, "b h n c c"]  # a_ij (k_i . k_j) for j < i
    inverse: Float[Tensor, "b h n c c"]  # of the system
    recalling: Float[Tensor, "b h n c d"]  # a_i k_i
    kept: Float[Tensor, "b h n c d"]  # what is left of keys at the end
    lacking: Float[Tensor, "b h n c e"]  # v_i - a_i S^T k_i
    u: Float[Tensor, "b h n c e"]
    found: Float[Tensor, "b h n d e"]  # S
    last: Matrix

    @classmethod
    def of(cls, k: Queries, v: Values, beta: Betas, log_decay: LogDecays, *, state: Matrix) -> "Chunks":
        k, v, beta, log_decay = (chunked(x) for x in (k, v, beta, once(log_decay)))
        fading, left = fade(log_decay), between(log_decay)
        alike = (k @ k.mT).mul_(left).tril_(-1)
        one = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
        inverse = torch.linalg.solve_triangular(beta * alike, one, upper=False, unitriangular=True)
        solution, recalling, kept = inverse * beta.mT, fading.since_start * k, fading.until_end * k
        lacking, u, found = [], [], []
        whole = fading.whole.expand(-1, -1, k.shape[2], -1, -1)
        for n in range(k.shape[2]):
            found.append(state)
            lacking.append(v[:, :, n] - recalling[:, :, n] @ state)
            u.append(solution[:, :, n] @ lacking[n])
            state = torch.addcmul(kept[:, :, n].mT @ u[n], whole[:, :, n], state)
        r, u, S = (torch.stack(x, 2) for x in (lacking, u, found))
        return cls(k, beta, fading, left, alike, inverse, recalling, kept, r, u, S, state)


def backward(
    grad: Values,
    grad_state: Matrix,
    q: Queries,
    k: Queries,
    v: Values,
    beta: Betas,
    log_decay: LogDecays,
    *,
    state: Matrix,
) -> tuple[Queries, Queries, Values, Betas, LogDecays, Matrix]:
    """Gradients of what `advance` is given. That of a log_decay is as in `decay.py`."""
    chunk, length = Chunks.of(k, v, beta, log_decay, state=state), q.shape[2]
    q, grad, k, fading, left = chunked(q), chunked(grad), chunk.k, chunk.fading, chunk.left
    weights = (q @ k.mT).mul_(left)
    pulled, of_u = (q * fading.since_start).mT @ grad, weights.mT @ grad
    back, due, solved = chunk.inverse.mT, [], []
    whole = fading.whole.expand(-1, -1, q.shape[2], -1, -1)
    for n in reversed(range(q.shape[2])):
        due.append(grad_state)
        solved.append(back[:, :, n] @ (of_u[:, :, n] + chunk.kept[:, :, n] @ grad_state))
        taken = chunk.recalling[:, :, n].mT @ (chunk.beta[:, :, n] * solved[-1])
        grad_state = whole[:, :, n] * grad_state + pulled[:, :, n] - taken
    after, of_right = torch.stack(due[::-1], 2), torch.stack(solved[::-1], 2)
    dv = chunk.beta * of_right
    of_weights, of_system = (grad @ chunk.u.mT).tril_(), (of_right @ chunk.u.mT).tril_(-1).neg_()
    dbeta = (of_right * chunk.lacking).sum(-1, keepdim=True)
    dbeta += (of_system * chunk.alike).sum(-1, keepdim=True)
    of_system *= chunk.beta
    dq = (grad @ chunk.found.mT).mul_(fading.since_start)
    recalled = (dv @ chunk.found.mT).mul_(fading.since_start)
    dk = (chunk.u @ after.mT).mul_(fading.until_end)
    flow = earlier((k * dk).sum(-1, keepdim=True))
    flow += later((q * dq).sub_(k * recalled).sum(-1, keepdim=True))
    flow += (chunk.found * after).sum((-1, -2))[..., None, None] * fading.whole
    flow += across((of_weights * weights).addcmul_(of_system, chunk.alike))
    of_weights *= left
    of_system *= left
    dq += of_weights @ k
    dk += (of_weights.mT @ q).sub_(recalled).add_((of_system + of_system.mT) @ k)
    dq, dk, dv, dbeta, flow = (unchunked(x, length) for x in (dq, dk, dv, dbeta, flow))
    return dq, dk, dv, dbeta, flow.sum_to_size(log_decay.shape), grad_state
