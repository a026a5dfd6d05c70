"""Patterns by windows and tiles: our own operators, for any device and dtype.

A pattern's parts lay tokens out in tiles (`patterns/parts.py`). Each pair belongs to the first part that
covers it, so that a union counts no pair twice. Work and memory grow with the tiles.

Tiles, and how many there are, depend on the length, and a graph that laid them out would be for one length.
In a graph the pattern is one operator, whose body lays them out. It takes the pattern as text, so that a
graph can be saved.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.shared.attention_operator import attention_operator
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.precision import wide
from subquad.ops.shared.unused import unused
from subquad.ops.tile_attention import BACKENDS as TILE_BACKENDS
from subquad.ops.tile_attention import TileCall, TileResult, tile_attention
from subquad.ops.window_attention import BACKENDS as WINDOW_BACKENDS
from subquad.ops.window_attention import (
    WindowCall,
    WindowResult,
    require_tokens,
    window_attention,
    window_call,
)
from subquad.patterns.grammar import read_again
from subquad.patterns.layout import layout
from subquad.patterns.pattern import Pattern, PerHead
from subquad.patterns.pattern_attention import BACKENDS, PatternCall

Lengths = Int[Tensor, " b"]
Heads = Float[Tensor, "b h s e"]


def refuses(call: PatternCall) -> None:
    """It takes every call."""


def forward(call: PatternCall) -> Heads:
    pattern, *inputs, valid = call
    packing = Packing.of(valid, like=call.k)
    n = None if valid is None else packing.count
    return packing.unpack(packed(pattern, *map(packing.pack, inputs), n=n))


def packed(pattern: Pattern, q: Tensor, k: Tensor, v: Tensor, *, n: Lengths | None) -> Heads:
    """The same of sequences of which the first n tokens are real."""
    if isinstance(pattern, PerHead):
        return run_by_head(pattern, partial(packed, n=n), q, k, v)
    if q.shape[0] == 0 or q.shape[2] == 0:
        return v + unused(q, k)
    if torch.compiler.is_compiling():
        return as_node(pattern, q, k, v, n)
    band, tilings = layout(pattern, q.shape[2], n, q.device)
    if band is not None and not tilings:
        return window_attention(q, k, v, left=band[0], right=band[1], lengths=n)[0]
    return tile_attention(*wide(q, k, v), tilings=tilings, lengths=n, band=band).to(v.dtype)


def run_by_head(pattern: PerHead, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`run` each distinct pattern on the heads that have it; no list of heads is copied to the device."""
    outputs: dict[int, Tensor] = {}
    for one, heads in pattern.groups:
        out = run(one, *(torch.stack([x[:, head] for head in heads], 1) for x in inputs))
        outputs.update(zip(heads, out.unbind(1), strict=True))
    return torch.stack([outputs[head] for head in range(len(outputs))], 1)


def as_node(pattern: Pattern, q: Tensor, k: Tensor, v: Tensor, n: Lengths | None) -> Heads:
    """`packed` as one node of a graph."""
    require_tokens(q, k, v, n)
    return call_op(pattern_op, q, k, v, n, repr(pattern))[0]


def pattern_call(q: Tensor, k: Tensor, v: Tensor, n: Tensor | None, pattern: str) -> WindowCall | TileCall:
    """What the pattern comes to: a window, or tiles."""
    band, tilings = layout(read_again(pattern), q.shape[2], n, q.device)
    if band is not None and not tilings:
        return window_call(q, k, v, n, *band)
    q, k, v = wide(q, k, v)
    return TileCall(q, k, v, tilings, n, band)


def node_forward(*inputs: Any) -> tuple[int, WindowResult | TileResult]:
    q, k, v, _, pattern = inputs
    BACKENDS.confirm("tiles", PatternCall(read_again(pattern), q, k, v, None))
    call = pattern_call(*inputs)
    if isinstance(call, WindowCall):
        return WINDOW_BACKENDS.run("forward", call)
    backend, result = TILE_BACKENDS.run("forward", call)
    return backend, result._replace(out=result.out.to(v.dtype))


def node_backward(
    grad: Tensor, grad_lse: Tensor, backend: Tensor, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call = pattern_call(*inputs)
    if isinstance(call, WindowCall):
        grads, result = WindowResult(grad, grad_lse), WindowResult(out, lse)
        return WINDOW_BACKENDS[backend].backward(grads, call, result)
    grad, out = wide(grad, out)
    gradients = TILE_BACKENDS[backend].backward(grad, call, TileResult(out, lse))
    dq, dk, dv = (x.to(inputs[2].dtype) for x in gradients)
    return dq, dk, dv


pattern_op = attention_operator(
    "pattern", "Tensor q, Tensor k, Tensor v, Tensor? n, str pattern", node_forward, node_backward
)
