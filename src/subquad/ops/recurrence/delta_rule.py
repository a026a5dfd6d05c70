"""The delta rule: a matrix that, for each key, puts a new value in the place of the one it would recall.

    out_i = q_i^T S_i,    S_i = alpha_i S_(i-1) + k_i u_i^T,    u_i = beta_i (v_i - alpha_i S_(i-1)^T k_i)

which is S_i = (I - beta_i k_i k_i^T) alpha_i S_(i-1) + beta_i k_i v_i^T: with |k_i| = 1 and beta_i = 1, k_i
then recalls v_i exactly. Where a chunk found S, with a_ij what is left at i of what j wrote, and a_i what is
left of S, the u solve a triangular system:

    u_i + sum_(j < i) beta_i a_ij (k_i . k_j) u_j = beta_i (v_i - a_i S^T k_i)

Solved once for both parts of the right side, u = u_own - w S is one product once S is known, and the chunk
behaves as in `decay.py` with u for v: the WY form of a product of Householder matrices.

alpha may be one for all channels or one for each: then it stands in front of S as a diagonal matrix, and
a_ij (k_i . k_j) is sum_c k_ic a_ijc k_jc, made by halves as in `decay.py`.

`blocks.py` runs it over blocks of tokens; the compiled kernels are in native/delta.cpp.

Yang, Wang, Zhang, Shen, Kim: Parallelizing Linear Transformers with the Delta Rule over Sequence Length.
NeurIPS 2024, arXiv:2406.06484, section 3. Yang, Kautz, Hatamizadeh: Gated Delta Networks. ICLR 2025,
arXiv:2412.06464, section 3.3. By channel: Kimi Team: Kimi Linear. arXiv:2510.26692.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.recurrence import decay
from subquad.ops.recurrence.chain import Chain, Matrix
from subquad.ops.recurrence.decay import (
    Fading,
    Queries,
    Values,
    across,
    backward_by_halves,
    chunk_outputs,
    earlier,
    fade,
    later,
    once,
    weights_by_halves,
)
from subquad.ops.shared.fading import between
from subquad.ops.shared.segments import chunked, unchunked

Betas = Float[Tensor, "b h t 1"]
LogDecays = Float[Tensor, "#b #h t #d"]  # at most 0; one for each channel of a key, or one for all


def advance(
    q: Queries, k: Queries, v: Values, beta: Betas, log_decay: LogDecays, *, state: Matrix, chain: Chain
) -> tuple[Values, Matrix]:
    """A block of tokens, its chunks side by side."""
    chunk = Chunks.of(k, v, beta, log_decay, state=state, chain=chain)
    q, length = chunked(q, decay.CHUNK), q.shape[2]
    out = chunk_outputs(chunk.weights(q), chunk.u, q * chunk.fading.since_start, chunk.found)
    return unchunked(out, length), chunk.last


class Chunks(NamedTuple):
    """A block's chunks, and what the rule does in them."""

    k: Float[Tensor, "b h n c d"]
    beta: Float[Tensor, "b h n c 1"]
    log_decay: Float[Tensor, "#b #h #n c #d"]
    fading: Fading
    left: Float[Tensor, "#b #h #n c c"] | None  # a_ij; None: it is not one for all channels
    alike: Float[Tensor, "b h n c c"]  # a_ij (k_i . k_j) for j < i
    inverse: Float[Tensor, "b h n c c"]  # of the system
    solution: Float[Tensor, "b h n c c"]  # u from what is lacking
    recalling: Float[Tensor, "b h n c d"]  # a_i k_i
    kept: Float[Tensor, "b h n c d"]  # what is left of keys at the end
    lacking: Float[Tensor, "b h n c e"]  # v_i - a_i S^T k_i
    u: Float[Tensor, "b h n c e"]
    found: Float[Tensor, "b h n d e"]  # S
    last: Matrix

    @classmethod
    def of(
        cls, k: Queries, v: Values, beta: Betas, log_decay: LogDecays, *, state: Matrix, chain: Chain
    ) -> "Chunks":
        k, v, beta, log_decay = (chunked(x, decay.CHUNK) for x in (k, v, beta, once(log_decay)))
        fading, left = fade(log_decay), between(log_decay) if log_decay.shape[-1] == 1 else None
        alike = weigh(k, k, log_decay, left).tril_(-1)
        one = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
        inverse = torch.linalg.solve_triangular(beta * alike, one, upper=False, unitriangular=True)
        solution, recalling, kept = inverse * beta.mT, fading.since_start * k, fading.until_end * k
        log_whole = fading.log_each(k.shape[2])
        S, last = chain.corrected(recalling, solution.mT @ kept, v, None, log_whole, state)
        lacking = v - recalling @ S
        u = solution @ lacking
        return cls(
            k, beta, log_decay, fading, left, alike, inverse, solution, recalling, kept, lacking, u, S, last
        )

    def weights(self, q: Float[Tensor, "b h n c d"]) -> Float[Tensor, "b h n c c"]:
        """a_ij (q_i . k_j) for j <= i."""
        return weigh(q, self.k, self.log_decay, self.left)


def weigh(
    q: Float[Tensor, "b h n c d"],
    k: Float[Tensor, "b h n c d"],
    log_decay: Float[Tensor, "#b #h #n c #d"],
    left: Float[Tensor, "#b #h #n c c"] | None,
) -> Float[Tensor, "b h n c c"]:
    return weights_by_halves(q, k, log_decay)[0] if left is None else (q @ k.mT).mul_(left)


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
    chain: Chain,
) -> tuple[Queries, Queries, Values, Betas, LogDecays, Matrix]:
    """Gradients of what `advance` is given. That of a log_decay is as in `decay.py`."""
    chunk, length = Chunks.of(k, v, beta, log_decay, state=state, chain=chain), q.shape[2]
    q, grad = (chunked(x, decay.CHUNK) for x in (q, grad))
    k, fading, left = chunk.k, chunk.fading, chunk.left
    weights = chunk.weights(q)
    pulled, of_u = (q * fading.since_start).mT @ grad, weights.mT @ grad
    due, grad_state = chain.corrected(
        chunk.kept.neg().flip(2),
        (chunk.solution @ chunk.recalling).neg_().flip(2),
        of_u.flip(2),
        pulled.flip(2),
        fading.log_each(q.shape[2]).flip(2),
        grad_state,
    )
    after = due.flip(2)
    of_right = chunk.inverse.mT @ of_u.add_(chunk.kept @ after)
    dv = chunk.beta * of_right
    of_weights, of_system = (grad @ chunk.u.mT).tril_(), (of_right @ chunk.u.mT).tril_(-1).neg_()
    dbeta = (of_right * chunk.lacking).sum(-1, keepdim=True)
    dbeta += (of_system * chunk.alike).sum(-1, keepdim=True)
    of_system *= chunk.beta
    dq = (grad @ chunk.found.mT).mul_(fading.since_start)
    recalled = (dv @ chunk.found.mT).mul_(fading.since_start)
    dk = (chunk.u @ after.mT).mul_(fading.until_end)
    found = (chunk.found * after).sum(-1)[..., None, :] * fading.log_whole.exp()[..., None, :]
    if left is None:
        flow = earlier(k * dk).add_(later((q * dq).sub_(k * recalled))).add_(found)
        dk -= recalled
        backward_by_halves(of_weights, q, k, chunk.log_decay, dq, dk, flow)
        backward_by_halves(of_system, k, k, chunk.log_decay, dk, dk, flow)
    else:
        flow = earlier((k * dk).sum(-1, keepdim=True))
        flow += later((q * dq).sub_(k * recalled).sum(-1, keepdim=True))
        flow += found.sum(-1, keepdim=True)
        flow += across((of_weights * weights).addcmul_(of_system, chunk.alike))
        of_weights *= left
        of_system *= left
        dq += of_weights @ k
        dk += (of_weights.mT @ q).sub_(recalled).add_((of_system + of_system.mT) @ k)
    dq, dk, dv, dbeta, flow = (unchunked(x, length) for x in (dq, dk, dv, dbeta, flow))
    return dq, dk, dv, dbeta, flow.sum_to_size(log_decay.shape), grad_state
