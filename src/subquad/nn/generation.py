"""Generation: a model goes on from prompts, token by token, by steps of its stream.

Prompts are read in one pass. What a row is given then depends on its prompt, the seed and its number among
the prompt's samples alone: on no other row and, up to rounding, on no device. Rows that have ended go on as
padding, which moves no state.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.config import SamplingConfig
from subquad.nn.model import SequenceModel
from subquad.nn.prompts import (
    Prompts,
    Stops,
    StopTokens,
    append,
    can_reserve,
    read_prompts,
    require_generating,
    tokens_of,
)
from subquad.nn.sampling import Logits, Uniforms, draw, penalised
from subquad.nn.state import reorder
from subquad.ops.shared.waiting import may_wait

SAMPLING = SamplingConfig()  # its defaults
ROOM = 256  # tokens for which room and random numbers are made at a time
LOOK_INTERVAL = 32  # tokens between two looks at whether all rows have ended, where a look waits


class NextTokens(NamedTuple):
    """One more token of each row."""

    ids: Int[Tensor, " b"]  # 0 where the row had ended
    valid: Bool[Tensor, " b"]  # False where the row had ended


class Generated(NamedTuple):
    """What came after each prompt."""

    tokens: Int[Tensor, "b n"]  # with the stop that ended a row, and 0 behind it
    lengths: Int[Tensor, " b"]  # tokens of each row


class Decoder:
    """Rows that go on from their prompts: an iterator over `NextTokens`, until all rows have ended.

    Where the mechanism's state is bounded, memory is the same after any number of tokens. On CUDA the host
    looks at no number, except at whether all rows have ended, now and then, if there is something to stop at.

    `state` is the stream's after all tokens but the last, which the model has not read yet.

    For a CUDA graph, call `refill` and `pick`, and then capture `read` followed by `pick`: each replay goes
    on by a token, in tensors that stay where they are, for as many tokens as `refill` made room for.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: SequenceModel,
        prompts: Prompts,
        *,
        tokens: int,
        sampling: SamplingConfig = SAMPLING,
        stop: Stops = (),
        samples: int = 1,
    ) -> None:
        """Read the prompts. Raises `ValueError` where the model cannot go on from them.

        model: causal, of tokens, with the logits of the next one at each, and in evaluation mode.
        prompts: what the model reads first, each of any length.
        tokens: after each prompt, at most.
        sampling: how the next one follows from logits.
        stop: tokens after which a row ends, and which are its last.
        samples: rows of each prompt, side by side.
        """
        require_generating(model, prompts, tokens=tokens, samples=samples)
        logits, state = read_prompts(model, prompts)
        rows = torch.arange(len(prompts), device=logits.device).repeat_interleave(samples)
        self.model, self.sampling = model, sampling
        self.logits: Logits | None = logits[rows]  # of the next token; None: the last one is to be read first
        self.state = state if samples == 1 else reorder(state, rows)
        self.in_place = can_reserve(model.encoder, self.state)
        self.left = tokens  # to come at most
        self.filled = 0  # of these, how many have room and a random number
        self.ids = torch.zeros_like(rows)
        self.ended = torch.zeros_like(rows, dtype=torch.bool)
        self.stop = StopTokens(stop, device=rows.device)
        self.latest = self.stop.initial(len(rows))
        self.seen = self.uniforms = None
        if sampling.repetition_penalty != 1:
            self.seen = tokens_of(prompts, outputs=logits.shape[1]).to(rows.device)[rows]
        if sampling.temperature:
            purposes = [f"{sample} of {[*prompt]}" for prompt in prompts for sample in range(samples)]
            self.uniforms = Uniforms(sampling.seed, purposes, tokens=ROOM, device=rows.device)

    def __iter__(self) -> Iterator[NextTokens]:
        return self

    def __next__(self) -> NextTokens:
        if not self.left or self._all_ended():
            raise StopIteration
        if not self.filled:
            self.refill()
        if self.logits is None:
            self.read()
        self.left -= 1
        self.filled -= 1
        return self.pick()

    @torch.no_grad()
    def refill(self) -> None:
        """Make room and random numbers for the next `ROOM` tokens, if so many may come."""
        if self.in_place:
            self.state = self.model.encoder.reserve(self.state, min(ROOM, self.left))
        if self.uniforms is not None:
            self.uniforms.refill()
        self.filled = ROOM

    @torch.no_grad()
    def read(self) -> None:
        """Let the model read the token of each row that was picked last."""
        valid = ~self.ended[:, None] if self._may_have_ended() else None
        out, self.state = self.model.step(
            (self.ids[:, None],), valid, state=self.state, in_place=self.in_place
        )
        self.logits = out[:, -1]

    @torch.no_grad()
    def pick(self) -> NextTokens:
        """Choose the next token of each row, by what the model answered to the last one."""
        assert self.logits is not None
        logits, self.logits, valid = self.logits, None, ~self.ended
        if self.seen is not None:
            logits = penalised(logits, self.seen, self.sampling.repetition_penalty)
        if self.uniforms is None:
            ids = logits.argmax(-1)
        else:
            ids = draw(logits, self.sampling, self.uniforms.next())
        if self.stop:
            ids = ids.where(valid, 0)
            self.latest.copy_(append(self.latest, ids))
            self.ended |= self.stop.ended(self.latest)
        if self.seen is not None:
            self.seen.scatter_(1, ids[:, None], True)
        self.ids.copy_(ids)
        return NextTokens(ids, valid)

    def _all_ended(self) -> bool:
        if not self.stop or not (may_wait(self.ended) or self.left % LOOK_INTERVAL == 0):
            return False
        return bool(self.ended.all())

    def _may_have_ended(self) -> bool:
        return bool(self.stop) and not (may_wait(self.ended) and not self.ended.any())


def generate(
    model: SequenceModel,
    prompts: Prompts,
    *,
    tokens: int,
    sampling: SamplingConfig = SAMPLING,
    stop: Stops = (),
    samples: int = 1,
) -> Generated:
    """What comes after each prompt, in rows as a `Decoder` has them, whose options and errors these are.

    To have tokens as they come, iterate over a `Decoder`.
    """
    decoder = Decoder(model, prompts, tokens=tokens, sampling=sampling, stop=stop, samples=samples)
    ids, valid = (torch.stack(parts, 1) for parts in zip(*decoder, strict=True))
    lengths = valid.sum(1)
    return Generated(ids[:, : int(lengths.max())], lengths)
