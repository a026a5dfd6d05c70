"""The delta rule: a matrix that, for each key, puts a new value in the place of the one it would recall.

    out_i = q_i^T S_i,    S_i = alpha_i S_(i-1) + k_i u_i^T,    u_i = beta_i (v_i - alpha_i S_(i-1)^T k_i)

which is S_i = (I - beta_i k_i k_i^T) alpha_i S_(i-1) + beta_i k_i v_i^T: with |k_i| = 1 and beta_i = 1, k_i
then recalls v_i exactly. Where a chunk found S, with a_ij what is left at i of what j wrote, and a_i what is
left of S, the u solve a triangular system:

    u_i + sum_(j < i) beta_i a_ij (k_i . k_j) u_j = beta_i (v_i - a_i S^T k_i)

Solved once for both parts of the right side, u = u_own - w S is one product once S is known, and the chunk
behaves as in `ops/decay.py` with u for v: the WY form of a product of Householder matrices.

Yang, Wang, Zhang, Shen, Kim: Parallelizing Linear Transformers with the Delta Rule over Sequence Length.
NeurIPS 2024, arXiv:2406.06484, section 3. Yang, Kautz, Hatamizadeh: Gated Delta Networks. ICLR 2025,
arXiv:2412.06464, section 3.3.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops import flash_linear
from subquad.ops.decay import Matrix, Queries, Values, between, chunked, fade, joined

Betas = Float[Tensor, "b h t 1"]
LogDecays = Float[Tensor, "#b #h t 1"]  # at most 0


def delta_product(
    q: Queries,
    k: Queries,
    v: Values,
    beta: Betas,
    log_decay: LogDecays,
    *,
    state: Matrix,
    given: torch.dtype,
) -> tuple[Values, Matrix]:
    """The outputs, and the state after the last token. A token with k = 0 and log_decay = 0 leaves no trace.

    `given` is the dtype in which the caller was given q, k and v: half precision may go to kernels of a GPU.
    """
    if flash_linear.serves(q, given=given):
        return flash_linear.delta_product(q, k, v, beta, log_decay, state=state, given=given)
    length, e = q.shape[2], v.shape[3]
    q, k, v, beta, log_decay = (chunked(x) for x in (q, k, v, beta, log_decay))
    fading, left = fade(log_decay), between(log_decay)
    system = ((beta * k) @ k.mT * left).tril(-1)
    right = beta * torch.cat([v, fading.since_start * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u_own, w = solved[..., :e], solved[..., e:]
    kept = (k * fading.until_end).mT
    found, u = [], []
    for n in range(q.shape[2]):
        found.append(state)
        u.append(u_own[:, :, n] - w[:, :, n] @ state)
        state = fading.whole[:, :, n] * state + kept[:, :, n] @ u[n]
    weights = (q @ k.mT) * left
    out = weights @ torch.stack(u, 2) + (q * fading.since_start) @ torch.stack(found, 2)
    return joined(out, length), state
