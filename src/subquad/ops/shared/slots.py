"""What a stream keeps of its tokens in slots: all of them so far, or in a ring the last ones.

In a ring of w slots token n stands in slot n % w, until token n + w takes its place: nothing is moved.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.shared.packing import Packing
from subquad.ops.shared.waiting import must_not_look, require_at_most


class KVCache(NamedTuple):
    """All real tokens so far, packed to the left; what stands behind them is finite, and is not read."""

    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s e"]
    count: Int[Tensor, " b"]


def extend(
    cache: KVCache | None,
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t e"],
    *,
    packing: Packing,
    in_place: bool,
) -> KVCache:
    """The cache with the real tokens of one more chunk; `in_place`: in the room that it has.

    Raises `ValueError` where there is too little.
    """
    k, v = packing.pack(k), packing.pack(v)
    if cache is None:
        return KVCache(k, v, packing.count.clone())  # which layers share, and states must not
    count, room, chunk = cache.count + packing.count, cache.k.shape[2], k.shape[2]
    if in_place:
        too_little = f"a state has room for {room} tokens, not {{}}: `reserve` more"
        require_at_most(room, count, too_little)
        if chunk > room:
            raise ValueError(too_little.format(f"a chunk of {chunk}"))
        slot, real = next_slots(cache, chunk) % max(room, 1), packing.valid
        known_k, known_v = cache.k, cache.v
    else:
        known_k, known_v = torch.cat([cache.k, k], 2), torch.cat([cache.v, v], 2)
        if is_known_full(cache):
            return KVCache(known_k, known_v, count)
        slot, real = next_slots(cache, chunk), None
    known_k, known_v = write_slots(known_k, k, slot, real=real), write_slots(known_v, v, slot, real=real)
    return KVCache(known_k, known_v, count)


def is_known_full(cache: KVCache) -> bool:
    """Whether a token stands in each slot, so far as somebody may look."""
    return not must_not_look(cache.count) and min(cache.count.tolist(), default=0) == cache.k.shape[2]


def next_slots(cache: KVCache, chunk: int) -> Int[Tensor, "b t"]:
    return cache.count[:, None] + torch.arange(chunk, device=cache.count.device)


def reserve(cache: KVCache, tokens: int) -> KVCache:
    """The cache with room for so many further tokens."""
    k, v = (F.pad(x, (0, 0, 0, tokens)) for x in (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def write_slots(
    slots: Float[Tensor, "b h s c"],
    x: Float[Tensor, "b h t c"],
    slot: Int[Tensor, "b t"],
    *,
    real: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b h s c"]:
    """`slots`, after each token has been written into a slot of its own, unless it is not `real`."""
    index = slot[:, None, :, None].expand(x.shape)
    if real is not None:
        x = x.where(real[:, None, :, None], slots.gather(2, index))
    return slots.scatter_(2, index, x)


def newest(count: Int[Tensor, "*b"], size: int) -> Int[Tensor, "*b w"]:
    """Which of `count` tokens stands in each slot of a ring of this size; below 0: none as yet."""
    last = count[..., None] - 1
    return last - (last - torch.arange(size, device=count.device)) % size
