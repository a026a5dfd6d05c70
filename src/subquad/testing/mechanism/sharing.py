"""That ranks which share a sequence give what one process gives for the whole.

Here ranks are threads, so that gradients flow from one to another without an exchange of their own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.mechanism import Mechanism, Valid
from subquad.shards import Shards
from subquad.testing.mechanism.cases import (
    LENGTH,
    Tensors,
    assert_close,
    each_form,
    gradients,
    leaves,
    padding_masks,
    random_inputs,
)

CUTS = ([2, 0, 9, 13], [8, 8, 8])  # ways to share a sequence of LENGTH

R = TypeVar("R")


def check_ranks_equal_one_process(cls: type[Mechanism]) -> None:
    """Outputs and gradients are those of the whole sequence, with padding anywhere."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        targets = leaves(mechanism, inputs)
        for where, valid in {"none": None, "anywhere": padding_masks()["anywhere"]}.items():
            real = torch.ones(2, LENGTH, dtype=torch.bool) if valid is None else valid
            padding = ~real[:, None, :, None]
            whole = mechanism(**inputs, valid=valid).masked_fill(padding, 0)
            expected = gradients(whole, targets)
            for cut in CUTS:
                form = "causal" if mechanism.causal else "bidirectional"
                label = f"{form}, padding {where}, shards of {cut}: ".__add__
                out = shared(mechanism, inputs, cut, valid=valid).masked_fill(padding, 0)
                assert_close(out, whole, msg=label)
                assert_close(gradients(out, targets), expected, msg=label)


def check_refuses_to_be_shared(cls: type[Mechanism]) -> None:
    """Without the trait `exchange`, `sharded` is a ValueError."""
    for mechanism in each_form(cls):
        refusal = ""
        try:
            shared(mechanism, random_inputs(mechanism), [11, 13], valid=None)
        except ValueError as error:
            refusal = str(error)
        assert refusal, "several ranks can share a sequence by it: say so by the trait `exchange`"
        assert cls.traits.name in refusal, f"it refuses without its name: {refusal!r}"


def shared(mechanism: Mechanism, inputs: Tensors, cut: list[int], *, valid: Valid | None) -> Tensor:
    """What ranks give who hold so many tokens each."""
    parts = [
        dict(zip(inputs, x, strict=True))
        for x in zip(*(y.split(cut, 2) for y in inputs.values()), strict=True)
    ]
    masks = [None] * len(cut) if valid is None else valid.split(cut, 1)
    rows = len(inputs["q"])
    counts = torch.stack(
        [torch.full((rows,), n) if mask is None else mask.sum(1) for n, mask in zip(cut, masks, strict=True)]
    )

    def run(shards: Shards) -> Tensor:
        return mechanism.sharded(**parts[shards.rank], valid=masks[shards.rank], shards=shards)

    return torch.cat(on_ranks(run, counts, cut), 2)


def on_ranks(run: Callable[[Shards], R], counts: Int[Tensor, "ranks b"], lengths: list[int]) -> list[R]:
    """What `run` returns on each rank, or what one of them raises."""
    meeting = Meeting(len(lengths))

    def guarded(rank: int) -> R:
        try:
            return run(ThreadShards(rank, counts, lengths, meeting))
        except BaseException:
            meeting.barrier.abort()  # nobody waits for this rank
            raise

    with ThreadPoolExecutor(len(lengths)) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(len(lengths))]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]


class Meeting:
    """Where ranks lay down what they exchange."""

    def __init__(self, ranks: int) -> None:
        self.barrier = Barrier(ranks)
        self.table: list[Tensor | None] = [None] * ranks


class ThreadShards(Shards):
    """Shards that threads of one process hold."""

    def __init__(
        self, rank: int, counts: Int[Tensor, "ranks b"], lengths: list[int], meeting: Meeting
    ) -> None:
        super().__init__(rank, counts, lengths)
        self.meeting = meeting

    def gather(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "ranks ..."]:
        return torch.stack(self._exchange(x))

    def shift(self, x: Float[Tensor, "*shape"], by: int) -> Float[Tensor, "*shape"]:
        every, rank = self._exchange(x), self.rank - by
        return every[rank] if 0 <= rank < len(every) else torch.zeros_like(x)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.meeting.table[self.rank] = x
        self.meeting.barrier.wait()
        every = [y for y in self.meeting.table if y is not None]
        self.meeting.barrier.wait()
        return every
