"""What a compressor of old tokens is asked for: that attention, or a decoder, hardly notice it.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap: Compressive Transformers for Long-Range Sequence Modelling.
ICLR 2020, arXiv:1911.05507, section 3.2. Here losses are means, over queries or tokens, and not sums, and
squared distances.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.memories.compression import Compressor, Decoder, KeysOrValues
from subquad.memories.segments import Segments, as_batch, windows
from subquad.ops.attention import attention


def attention_loss(
    f_c: Compressor,
    queries: KeysOrValues,
    slots: list[KeysOrValues],
    segments: Segments,
    *,
    preceding: Int[Tensor, "b n"],
    memory: int,
) -> Float[Tensor, ""]:
    """mean |attention(q, k, v) - attention(q, f_c(k), f_c(v))|^2, for what is about to leave the memory.

    For all queries and heads, by content alone, unmasked. Nothing but f_c learns from it.

    preceding: how often `rate` tokens, or a slot, there are before each segment.
    """
    c, evicted = f_c.rate, min(segments.size, memory)  # tokens, when a segment is full
    first = (memory - evicted) // segments.size + 1 if segments.new else 0  # before that nothing is evicted
    count = segments.count - first
    if count <= 0:
        return queries.new_zeros(())
    blocks = leaving(slots, segments, memory=memory, first=first)
    old = [x[:, :, :, :evicted] for x in blocks]
    new = [x[:, :, :, : evicted // c] for x in compressed(f_c, blocks)]
    there = exists(preceding[:, first:], rate=c, memory=memory, width=evicted)
    some = there.any(-1, keepdim=True)
    seen = (there | ~some).flatten(0, 1)[:, None, None]
    queries = F.pad(queries.detach(), (0, 0, 0, segments.count * segments.width - queries.shape[2]))
    q = as_batch(queries.unflatten(2, (segments.count, segments.width))[:, :, first:])
    old_mixed, new_mixed = (
        attention(q, *(as_batch(y) for y in x), seen=seen[..., ::step]) for x, step in ((old, 1), (new, c))
    )
    readers = segments.real()[:, first:] & some
    error = (old_mixed - new_mixed).square().mean(-1).masked_fill(~readers.flatten(0, 1)[:, None], 0)
    return error.sum() / (readers.sum() * queries.shape[1]).clamp(min=1)


def encoding_loss(
    f_c: Compressor,
    decoder: Decoder,
    slots: list[KeysOrValues],
    segments: Segments,
    *,
    preceding: Int[Tensor, "b n"],
    memory: int,
) -> Float[Tensor, ""]:
    """mean |x - decoder(f_c(x))|^2, over the keys and values of all tokens that leave the memory.

    A segment's leave when it is full. Nothing but f_c and the decoder learns from it.
    """
    first = memory // segments.size if segments.new else 0  # before that nothing leaves
    if segments.count <= first:
        return slots[0].new_zeros(())
    old = leaving(slots, segments, memory=memory, first=first)
    again = decoder(*(x.flatten(2, 3) for x in compressed(f_c, old)))
    there = exists(preceding[:, first:], rate=f_c.rate, memory=memory, width=segments.size)
    number = torch.arange(first, segments.count, device=there.device)
    left = there & (segments.end[:, None] >= (number + 1) * segments.size)[..., None]
    errors = [(x.flatten(2, 3) - y).square().mean(-1) for x, y in zip(old, again, strict=True)]
    error = sum(errors, torch.zeros_like(errors[0])).masked_fill(~left.flatten(1)[:, None], 0)
    return error.sum() / (left.sum() * len(errors) * error.shape[1]).clamp(min=1)


def leaving(
    slots: list[KeysOrValues], segments: Segments, *, memory: int, first: int
) -> list[Float[Tensor, "b h n l d"]]:
    """What leaves the memory when each segment is full, from the `first` one on, without gradients."""
    l = segments.size
    padded = (F.pad(x.detach(), (0, 0, segments.missing(memory), 0)) for x in slots)
    return [windows(x, count=segments.count, width=l, stride=l)[:, :, first:] for x in padded]


def compressed(f_c: Compressor, blocks: list[Float[Tensor, "b h n l d"]]) -> list[Float[Tensor, "b h n _ d"]]:
    new = f_c(*(x.flatten(2, 3) for x in blocks))
    return [x.unflatten(2, (blocks[0].shape[2], blocks[0].shape[3] // f_c.rate)) for x in new]


def exists(
    preceding: Int[Tensor, "b n"], *, rate: int, memory: int, width: int
) -> Bool[Tensor, "b n {width}"]:
    """Whether there is a token at each of the first places of each segment's memory and what follows it."""
    return torch.arange(width, device=preceding.device) >= memory - rate * preceding[..., None]
