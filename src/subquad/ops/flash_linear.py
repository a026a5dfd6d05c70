"""The same products by the Triton kernels of flash-linear-attention, where that is installed.

They serve half precision on CUDA outside of `torch.compile` and `torch.func`, where they do not go. Speed
and precision there have not been measured by us; the tests hold only the wiring against `fla`'s plain
PyTorch. Its tensors are (batch, time, heads, width) and its states (batch, heads, d, e), in float32, as ours.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.transforms import transformed

HALF = (torch.float16, torch.bfloat16)
WIDEST = 256  # keys, in the kernels


def serves(q: Float[Tensor, "b h t d"], *, given: torch.dtype) -> bool:
    """Whether the kernels are there for queries that were `given` in this dtype; they take no empty ones."""
    return (
        q.is_cuda
        and given in HALF
        and q.shape[2] > 0
        and q.shape[3] <= WIDEST
        and not torch.compiler.is_compiling()
        and not transformed()
        and find_spec("fla") is not None
    )


def kernel(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`fla` is no dependency: it is looked up when it is called."""
    return getattr(import_module(f"fla.ops.{name}"), f"chunk_{name}")


def decayed_product(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    log_decay: Float[Tensor, "#b #h t #d"],
    *,
    state: Float[Tensor, "b h d e"],
    given: torch.dtype,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h d e"]]:
    """`ops.decay.decayed_product`."""
    g = log_decay.expand(*q.shape[:3], -1).transpose(1, 2)
    q, k, v = (x.to(given).transpose(1, 2) for x in (q, k, v))
    if g.shape[-1] == 1:
        out, state = kernel("simple_gla")(
            q, k, v, g=g[..., 0], scale=1.0, initial_state=state, output_final_state=True
        )
    else:
        out, state = kernel("gla")(q, k, v, g=g, scale=1, initial_state=state, output_final_state=True)
    return out.transpose(1, 2).to(state.dtype), state


def delta_product(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    beta: Float[Tensor, "b h t 1"],
    log_decay: Float[Tensor, "#b #h t 1"],
    *,
    state: Float[Tensor, "b h d e"],
    given: torch.dtype,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h d e"]]:
    """`ops.delta_rule.delta_product`."""
    q, k, v = (x.to(given).transpose(1, 2) for x in (q, k, v))
    g, beta = (x[..., 0].transpose(1, 2) for x in (log_decay.expand_as(beta), beta))
    out, state = kernel("gated_delta_rule")(
        q, k, v, g, beta.to(given), scale=1.0, initial_state=state, output_final_state=True
    )
    return out.transpose(1, 2).to(state.dtype), state
