"""One token of a stream in one kernel: a program for each head reads the sums, adds a key and writes them.

Shapes depend on no past and nothing is asked of the device, so that steps can be captured in CUDA graphs. In
place S is written where it was read, each number by the thread that read it. Of z and c several threads have
the same numbers, and a slow one would read what another has written: these go elsewhere.
"""
# branches on constants and Triton's tensors are beyond pyright
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall
from subquad.ops.linear_attention.sums import ShiftedSums, Sums
from subquad.ops.linear_attention.triton_exponential_kernels import load_directions
from subquad.ops.linear_attention.triton_feature_kernels import elu
from subquad.ops.linear_attention.triton_inputs import Inputs, directions
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import kernel
from subquad.ops.triton.products import NOTHING
from subquad.ops.triton.tokens import finite_where_padding, head_of, token_mask


@kernel
def feature_step(
    q, k, v, valid, S0, z0, S1, z1, out, n, heads, features, segment,
    E: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    INITIAL: tl.constexpr, ELU: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    e, first = tl.arange(0, BE), tl.arange(0, 1)
    seen = tl.sum(token_mask(valid, bh, heads, first, n, MASK).to(tl.int32), 0)  # 0 at padding
    value = tl.load(v[0] + e, mask=e < E * seen, other=0.0).to(tl.float32)
    o, total = tl.zeros((BE,), tl.float32), tl.sum(tl.zeros((BE,), tl.float32), 0)
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        here, added, row = f < features, f < features * seen, bh * features + f
        mask = here[:, None] & (e < E)[None, :]
        x = finite_where_padding(tl.load(q[0] + f, mask=here, other=0.0).to(tl.float32), seen)
        y = tl.load(k[0] + f, mask=added, other=0.0).to(tl.float32)
        if ELU:
            x, y = tl.where(here, elu(x), 0.0), tl.where(added, elu(y), 0.0)
        S, z = y[:, None] * value[None, :], y
        if INITIAL:
            S += tl.load(S0 + row[:, None] * E + e[None, :], mask=mask, other=0.0)
            z += tl.load(z0 + row, mask=here, other=0.0)
        tl.store(S1 + row[:, None] * E + e[None, :], S, mask=mask)
        tl.store(z1 + row, z, mask=here)
        o += tl.sum(x[:, None] * S, 0)
        total += tl.sum(x * z, 0)
    o = o / tl.where(total == 0, 1.0, total)
    tl.store(out + bh * E + e, o.to(out.dtype.element_ty), mask=e < E)


@kernel
def exponential_step(
    q, k, v, W, valid, S0, z0, c0, S1, z1, c1, out, half, n, heads, features, segment,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr,
    INITIAL: tl.constexpr, FAVOR: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The query's weights are shifted by the largest logarithm so far, and scaled when it grows."""
    bh = tl.program_id(1).to(tl.int64)
    q, k, v = head_of(q, bh, heads), head_of(k, bh, heads), head_of(v, bh, heads)
    d, e, first = tl.arange(0, BD), tl.arange(0, BE), tl.arange(0, 1)
    seen = tl.sum(token_mask(valid, bh, heads, first, n, MASK).to(tl.int32), 0)  # 0 at padding
    value = tl.load(v[0] + e, mask=e < E * seen, other=0.0).to(tl.float32)
    o, total = tl.zeros((BE,), tl.float32), tl.sum(tl.zeros((BE,), tl.float32), 0)
    top = total + NOTHING
    if FAVOR:
        x = finite_where_padding(tl.load(q[0] + d, mask=d < D, other=0.0).to(tl.float32), seen)
        y = tl.load(k[0] + d, mask=d < D * seen, other=0.0).to(tl.float32)
        norm = tl.sum(y * y, 0) * half
    for start in range(0, features, BF):
        f = start + tl.arange(0, BF)
        here, added, row = f < features, f < features * seen, bh * features + f
        mask = here[:, None] & (e < E)[None, :]
        if FAVOR:
            w = load_directions(W, f, features, d, D)
            query_log, key_log = tl.sum(w * x[None, :], 1), tl.sum(w * y[None, :], 1) - norm
        else:
            query_log = finite_where_padding(tl.load(q[0] + f, mask=here, other=0.0).to(tl.float32), seen)
            key_log = tl.load(k[0] + f, mask=added, other=0.0).to(tl.float32)
        key_log = tl.where(added, key_log, NOTHING)
        c = tl.maximum(key_log, NOTHING)
        if INITIAL:
            before = tl.load(c0 + row, mask=here, other=NOTHING)
            c = tl.maximum(c, before)
        p = tl.where(added, tl.exp(key_log - c), 0.0)
        S, z = p[:, None] * value[None, :], p
        if INITIAL:
            old = tl.exp(before - c)
            S += tl.load(S0 + row[:, None] * E + e[None, :], mask=mask, other=0.0) * old[:, None]
            z += tl.load(z0 + row, mask=here, other=0.0) * old
        tl.store(S1 + row[:, None] * E + e[None, :], S, mask=mask)
        tl.store(z1 + row, z, mask=here)
        tl.store(c1 + row, c, mask=here)
        log = tl.where(here, query_log + c, NOTHING)
        new = tl.maximum(top, tl.max(log, 0))
        r, earlier = tl.exp(log - new), tl.exp(top - new)
        o = o * earlier + tl.sum(r[:, None] * S, 0)
        total = total * earlier + tl.sum(r * z, 0)
        top = new
    o = o / tl.where(total == 0, 1.0, total)
    tl.store(out + bh * E + e, o.to(out.dtype.element_ty), mask=e < E)


def one_token(call: LinearCall) -> tuple[Tensor, Sums | ShiftedSums]:
    """Outputs and the sums after one token."""
    inputs = Inputs(call, CONFIGS)
    q, k, v, valid = inputs.all
    out, after = call.v.new_empty(inputs.b, inputs.h, 1, inputs.e), call.after
    if after is call.before:
        after = after._replace(
            **{name: torch.empty_like(x) for name, x in after._asdict().items() if name != "S"}
        )
    before = after if call.before is None else type(after)(*(x.contiguous() for x in call.before))
    if isinstance(after, Sums):
        inputs.run(feature_step, q, k, v, valid, *before, *after, out, n=1)
    else:
        W, half = directions(call)
        inputs.run(exponential_step, q, k, v, W, valid, *before, *after, out, half, n=1)
    return out, after


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    """No products here."""
    for BF in (64, 32, 16):
        for warps in (4, 8):
            yield Config({"C": 1, "BF": BF, "BE": 128}, warps, stages=1)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    for kind in FeatureKind:
        q = torch.empty(2, 4, 1, width, dtype=dtype, device="meta")
        W = q.new_empty(256, width, dtype=torch.float32) if kind == FeatureKind.FAVOR else None
        call = LinearCall(q, q, q, W, q.new_empty(2, 1, dtype=torch.bool), kind, True)
        yield lambda call=call: one_token(call._replace(before=one_token(call)[1]))


CONFIGS = Configs(Path(__file__).with_suffix(".json"), candidates)
FAMILY = Family(CONFIGS, calls)
