"""Patterns by FlexAttention: PyTorch's kernels for CUDA, which skip blocks that hold no pair.

Which blocks hold a pair, `blocks.py` works out. Inside those that hold others too the kernel asks `allows`,
pair by pair, without storing the answers. Lengths and draws are tensors that the kernel reads, so that one
kernel serves all lengths.

Dong et al.: Flex Attention: A Programming Model for Generating Optimized Attention Kernels. MLSys 2025,
arXiv:2412.05496.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from subquad.ops.shared.operator import call_op
from subquad.ops.shared.packing import Packing, packing_of
from subquad.ops.shared.reuse import KNOWN, once_a_pass, once_a_process
from subquad.ops.shared.transforms import transformed
from subquad.ops.window_attention import require_tokens
from subquad.patterns.atoms import Random
from subquad.patterns.blocks import BLOCK, Drawing, block_lists, draw_table, drawings
from subquad.patterns.grammar import read_again
from subquad.patterns.pattern import Blocks, Intersection, Pattern, PerHead, Union
from subquad.patterns.pattern_attention import BACKENDS, PatternCall

SMALLEST_HEAD = 16  # its matrix units take no narrower queries
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def refuses(call: PatternCall) -> str | None:
    """Why FlexAttention has no fused kernel for this call."""
    q = call.q
    if not q.is_cuda:
        return f"it serves CUDA, not {q.device.type}"
    if not has_triton():
        return "it needs Triton (pip install triton)"
    if q.dtype not in DTYPES:
        return f"it takes float32 and half precision, not {q.dtype}"
    if min(q.shape[3], call.v.shape[3]) < SMALLEST_HEAD:
        return f"heads must be {SMALLEST_HEAD} wide at least, not {q.shape[3]} and {call.v.shape[3]}"
    if q.shape[0] == 0 or q.shape[2] == 0:
        return "there are no tokens"
    return "it knows no transforms of torch.func" if transformed() else None


@torch.compiler.assume_constant_result
def has_triton() -> bool:
    return find_spec("triton") is not None


def forward(call: PatternCall) -> Float[Tensor, "b h s e"]:
    pattern, q, k, v, valid = call
    require_tokens(q, k, v, None)
    if valid is None:
        blocks = whole_mask(pattern, q.shape[2], q.device)
    else:
        blocks = block_mask(pattern, q.shape[2], Packing.of(valid, like=k), q.device)
        q, k, v = (x.masked_fill(~valid[:, None, :, None], 0) for x in (q, k, v))  # zero times NaN is NaN
    if q.is_cuda and not torch.compiler.is_compiling():
        return compiled(pattern, q.dtype, valid is None)(q, k, v, blocks)
    return blockwise(q, k, v, blocks)


def blockwise(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask) -> Tensor:
    out = flex_attention(q, k, v, block_mask=blocks)
    assert isinstance(out, Tensor)
    return out


@lru_cache(KNOWN)
def compiled(*kind: Any) -> Callable[..., Tensor]:
    """`blockwise` for calls of this kind, of any length.

    The compiler keeps graphs by code, a few for each: kinds that shared theirs would use up each other's.
    """

    def own(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask) -> Tensor:
        return blockwise(q, k, v, blocks)

    own.__code__ = own.__code__.replace(co_name=f"blockwise of {kind}")
    return torch.compile(own, dynamic=True, fullgraph=True)  # uncompiled it would ask for every pair


@once_a_process
def whole_mask(pattern: Pattern, length: int, device: torch.device) -> BlockMask:
    return block_mask(pattern, length, None, device)


@once_a_pass
def block_mask(
    pattern: Pattern, length: int, packing: Packing | None, device: torch.device, block: int = BLOCK
) -> BlockMask:
    """The pattern of real tokens, for `flex_attention(..., block_mask=...)`; None: all are real.

    Tokens stay where they are, and the mask reads their positions.
    """
    if packing is None:
        tokens, valid, places = torch.full((1,), length, dtype=torch.int64, device=device), None, None
    else:
        assert packing.before is not None
        tokens, valid, places = packing.count, packing.before, call_op(places_op, packing.before)
    found = drawings(pattern)
    if torch.compiler.is_compiling():
        lists = call_op(blocks_op, tokens, valid, length, repr(pattern), block)
        drawn = [call_op(draws_op, tokens, length, repr(x.pattern), x.size, x.causal) for x in found]
    else:
        lists = listed(*block_lists(pattern, length, tokens, valid, block=block))
        drawn = [tables_of(x, length, tokens) for x in found]
    tables = dict(zip(found, drawn, strict=True))
    each = pattern.patterns if isinstance(pattern, PerHead) else (pattern,)
    same = len(tokens) == 1

    def allows(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = b * 0 if same else b
        real = tokens[row]
        if places is not None:
            i, j = places[row, i], places[row, j]
        answers = [pairs(one, i, j, real, row, tables) for one in each]
        allowed = answers[0]
        for head, answer in enumerate(answers[1:], start=1):
            allowed = torch.where(h == head, answer, allowed)
        return allowed & (i < real) & (j < real)

    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=allows, seq_lengths=(length, length))


def pairs(
    pattern: Pattern,
    i: Tensor,
    j: Tensor,
    n: Tensor,
    row: Tensor,
    tables: dict[Drawing, list[Tensor]],
    size: int = 1,
    causal: bool = False,
) -> Tensor:
    """`pattern.allows`, with draws that are read: the compiler would write out their hashes at each use."""
    if isinstance(pattern, Intersection) and pattern.without_causal is not None:
        return pairs(pattern.without_causal, i, j, i + 1, row, tables, size, True) & (j <= i)
    if isinstance(pattern, (Union, Intersection)):
        left = pairs(pattern.left, i, j, n, row, tables, size, causal)
        right = pairs(pattern.right, i, j, n, row, tables, size, causal)
        return left | right if isinstance(pattern, Union) else left & right
    if isinstance(pattern, Blocks):
        s = pattern.size
        units = (n + s - 1) // s
        return pairs(pattern.pattern, i // s, j // s, units, row, tables, size * s, causal)
    if isinstance(pattern, Random):
        first, *others = (table[row, i] == j for table in tables[Drawing(pattern, size, causal)])
        for other in others:
            first = first | other
        return first
    return pattern.allows(i, j, n)


@torch.library.custom_op("subquad::token_places", mutates_args=())
def places_op(valid: Tensor) -> Tensor:
    """`Packing.place`: a graph's mask reads what lies in memory, and this does as an operator's result."""
    place = packing_of(valid).place
    assert place is not None
    return place.to(torch.int32)


@places_op.register_fake
def _(valid: Tensor) -> Tensor:
    return valid.new_empty(valid.shape, dtype=torch.int32)


@torch.library.custom_op(
    "subquad::pattern_blocks",
    mutates_args=(),
    schema="(Tensor n, Tensor? valid, SymInt length, str pattern, int block) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def blocks_op(
    n: Tensor, valid: Tensor | None, length: int, pattern: str, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`listed(*block_lists(...))`, for any length."""
    BACKENDS.confirm("flex")
    asked, which, full, which_full = listed(*block_lists(read_again(pattern), length, n, valid, block=block))
    return asked, which, full, which_full


def listed(*kinds: Bool[Tensor, "b h blocks blocks"]) -> tuple[Tensor, ...]:
    """For each kind how many blocks of keys a block of queries has, and their places, then all others."""
    found = []
    for blocks in kinds:
        order = (~blocks).to(torch.int8).argsort(dim=-1, stable=True)
        found += [blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)]
    return tuple(found)


@blocks_op.register_fake
def _(
    n: Tensor, valid: Tensor | None, length: int, pattern: str, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, heads = -(-length // block), read_again(pattern).heads or 1
    numbers = n.new_empty(len(n), heads, count, dtype=torch.int32)
    places = n.new_empty(len(n), heads, count, count, dtype=torch.int32)
    return numbers, places, torch.empty_like(numbers), torch.empty_like(places)


@torch.library.custom_op("subquad::pattern_draws", mutates_args=())
def draws_op(n: Tensor, length: int, pattern: str, size: int, causal: bool) -> list[Tensor]:
    """`tables_of`, for any length."""
    return tables_of(drawing_of(pattern, size, causal), length, n)


def tables_of(drawing: Drawing, length: int, n: Int[Tensor, " b"]) -> list[Int[Tensor, "b rows"]]:
    """For each draw the key that each row draws."""
    table = draw_table(drawing.pattern, length, n, drawing.size, drawing.causal)
    return [draw.contiguous() for draw in table.unbind(-1)]


def drawing_of(pattern: str, size: int, causal: bool) -> Drawing:
    read = read_again(pattern)
    assert isinstance(read, Random)
    return Drawing(read, size, causal)


@draws_op.register_fake
def _(n: Tensor, length: int, pattern: str, size: int, causal: bool) -> list[Tensor]:
    count = drawing_of(pattern, size, causal).pattern.count
    return [n.new_empty(len(n), -(-length // size), dtype=torch.int32) for _ in range(count)]
