"""Patterns on CUDA: the block mask of FlexAttention, built from the pattern and never from all n^2 pairs.

Which blocks of queries and keys hold a pair follows from the pattern's rounding, where it rounds exactly, and
else from its tiles. Inside these blocks the kernel asks `allows`, pair by pair, without storing the answers.

Dong et al.: Flex Attention: A Programming Model for Generating Optimized Attention Kernels. MLSys 2025,
arXiv:2412.05496.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from subquad.ops.transforms import passing, transformed
from subquad.patterns.pattern import CAUSAL, Intersection, Pattern, PerHead, Union
from subquad.patterns.running import own_pairs, require_heads

BLOCK = 128  # FlexAttention's own default
SMALLEST_HEAD = 16  # its matrix units take no narrower queries


def suits_flex(q: Float[Tensor, "b h s d"]) -> bool:
    """Whether FlexAttention has a fused kernel for such queries; it knows no transforms of `torch.func`."""
    narrow = q.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return q.is_cuda and not transformed() and narrow and q.shape[2] > 0 and q.shape[3] >= SMALLEST_HEAD


def flex_attend(
    pattern: Pattern,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
) -> Float[Tensor, "b h s e"]:
    """`attend` by FlexAttention, for sequences without padding."""
    if isinstance(pattern, PerHead):
        require_heads(pattern, q.shape[1])
    build, run = flex_block_mask, flex_attention
    if not torch.compiler.is_compiling():
        build = flex_block_mask if passing() else _remembered
        run = _fused() if q.is_cuda else flex_attention
    out = run(q, k, v, block_mask=build(pattern, q.shape[2], device=q.device))
    assert isinstance(out, Tensor)
    return out


def flex_block_mask(pattern: Pattern, length: int, *, device: torch.device, block: int = BLOCK) -> BlockMask:
    """The pattern among `length` tokens, for `flex_attention(..., block_mask=...)`."""
    each = pattern.patterns if isinstance(pattern, PerHead) else (pattern,)
    n = torch.tensor(length, device=device)
    blocks = torch.stack([touched(one, length, block=block) for one in each]).to(device)
    order = (~blocks).to(torch.int8).argsort(dim=-1, stable=True)  # those that hold a pair come first

    def allows(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        answers = [one.allows(i, j, n) for one in each]
        allowed = answers[0]
        for head, answer in enumerate(answers[1:], start=1):
            allowed = torch.where(h == head, answer, allowed)
        return allowed

    return BlockMask.from_kv_blocks(
        blocks.sum(-1, dtype=torch.int32)[None],
        order.to(torch.int32)[None],
        BLOCK_SIZE=block,
        mask_mod=allows,
        seq_lengths=(length, length),
    )


def touched(pattern: Pattern, length: int, *, block: int) -> Bool[Tensor, "blocks blocks"]:
    """Which pairs of blocks hold a pair of the pattern."""
    count = -(-length // block)
    if isinstance(pattern, Union):
        return touched(pattern.left, length, block=block) | touched(pattern.right, length, block=block)
    if isinstance(pattern, Intersection) and pattern.right == CAUSAL and isinstance(pattern.left, Union):
        halves = (pattern.left.left & CAUSAL, pattern.left.right & CAUSAL)
        return touched(halves[0], length, block=block) | touched(halves[1], length, block=block)
    try:
        return pattern.coarse(block).mask(count)
    except ValueError:  # no exact rounding: look at the pairs, of which there are few
        return _touched_by_tiles(pattern, length, block=block)


def _touched_by_tiles(pattern: Pattern, length: int, *, block: int) -> Bool[Tensor, "blocks blocks"]:
    n, at = torch.tensor([length]), torch.arange(1, length + 1)[None, None, :, None]
    parts = pattern.parts(length=length, n=n, causal=False, unit=1)
    count = -(-length // block)
    found = torch.zeros(count, count, dtype=torch.bool)
    for part, seen in zip(parts, own_pairs(parts, i=at, j=at, n=n), strict=True):
        i, j = torch.broadcast_tensors(part.queries(at) - 1, (part.keys(at) - 1).mT)
        found[i[seen] // block, j[seen] // block] = True
    return found


@lru_cache(maxsize=16)
def _remembered(pattern: Pattern, length: int, *, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # as in `layout.py`
        return flex_block_mask(pattern, length, device=device)


@lru_cache(maxsize=1)
def _fused():
    return torch.compile(flex_attention)
