"""Beam search: of all ways to go on from a prompt, some of those that are likeliest.

Every way to go on by one token from the best so far is scored, and the best of them are kept. One that has
ended stays for as long as it is among the best. With as many beams as there are ways the search is
exhaustive.

A score is log p / length ** alpha: with 0 the logarithm of the probability, which is that of short ones more
than of long ones, with 1 the mean over tokens. Wu et al.: Google's Neural Machine Translation System. 2016,
arXiv:1609.08144, section 7, divide by ((5 + length) / 6) ** alpha.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.nn.generation import LOOK_INTERVAL, ROOM
from subquad.nn.model import SequenceModel
from subquad.nn.prompts import (
    NONE,
    Prompts,
    Stops,
    StopTokens,
    append,
    can_reserve,
    read_prompts,
    require_generating,
)
from subquad.nn.sampling import Logits
from subquad.nn.state import reorder
from subquad.ops.shared.waiting import may_wait


class Beams(NamedTuple):
    """The best ways to go on from each prompt, from the first."""

    tokens: Int[Tensor, "b k n"]  # with the stop that ended one, and 0 behind it
    lengths: Int[Tensor, "b k"]  # tokens of each
    scores: Float[Tensor, "b k"]  # log p / length ** alpha; -inf where there are fewer ways than beams


@torch.no_grad()
def beam_search(
    model: SequenceModel,
    prompts: Prompts,
    *,
    tokens: int,
    beams: int,
    alpha: float = 0.0,
    stop: Stops = (),
) -> Beams:
    """The `beams` best that a beam search finds. Nothing is drawn.

    model, prompts, tokens, stop: as a `Decoder` takes them, with its errors.
    alpha: the power of the length that a score is divided by.
    """
    require_generating(model, prompts, tokens=tokens, beams=beams)
    logits, state = read_prompts(model, prompts)
    batch, device = len(prompts), logits.device
    rows = torch.arange(batch, device=device).repeat_interleave(beams)
    state, logits = reorder(state, rows), logits[rows]
    in_place, stops = can_reserve(model.encoder, state), StopTokens(stop, device=device)
    latest, ended = stops.initial(len(rows)), torch.zeros_like(rows, dtype=torch.bool)
    lengths = torch.zeros_like(rows)
    total = logits.new_zeros(len(rows), dtype=torch.promote_types(logits.dtype, torch.float32))
    total = total.where(torch.arange(len(rows), device=device) % beams == 0, -torch.inf)  # all are alike
    scores, history = total, []
    for n in range(tokens):
        totals = total[:, None] + of_next(logits.to(total.dtype), ended)
        lengths = lengths + ~ended
        scores, rows, ids = best(totals, lengths[:, None].to(total.dtype) ** alpha, beams)
        total = totals[rows, ids]
        lengths, ended, latest, state = reorder((lengths, ended, latest, state), rows)
        history.append((rows, ids))
        latest = append(latest, ids.where(~ended, NONE))
        ended = ended | stops.ended(latest)
        if n + 1 == tokens or (stops and (may_wait(ended) or n % LOOK_INTERVAL == 0) and bool(ended.all())):
            break
        if in_place and n % ROOM == 0:
            state = model.encoder.reserve(state, min(ROOM, tokens - n))
        out, state = model.step((ids[:, None],), ~ended[:, None], state=state, in_place=in_place)
        logits = out[:, -1]
    return Beams(*(x.unflatten(0, (batch, beams)) for x in (traced(history, lengths), lengths, scores)))


def of_next(logits: Logits, ended: Bool[Tensor, " b"]) -> Logits:
    """log p of each token; what has ended goes on in one way, the first token, at no cost."""
    log_p = logits.log_softmax(-1)
    stays = torch.full_like(log_p[:1], -torch.inf)
    stays[:, 0] = 0
    return stays.where(ended[:, None], log_p)


def best(
    totals: Logits, divisors: Float[Tensor, "b 1"], beams: int
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Of each prompt's best ways to go on, from the first: scores, the rows they go on from, and tokens."""
    outputs = totals.shape[1]
    scores, place = (totals / divisors).reshape(-1, beams * outputs).topk(beams)
    first = beams * torch.arange(len(place), device=place.device)[:, None]
    return scores.flatten(), (first + place // outputs).flatten(), (place % outputs).flatten()


def traced(history: list[tuple[Tensor, Tensor]], lengths: Int[Tensor, " b"]) -> Int[Tensor, "b n"]:
    """The tokens that lead to each row, 0 behind its length; `history` has each step's rows and tokens."""
    row, tokens = torch.arange(len(lengths), device=lengths.device), []
    for rows, ids in reversed(history):
        tokens.append(ids[row])
        row = rows[row]
    whole = torch.stack(tokens[::-1], 1)
    return whole.masked_fill(torch.arange(len(history), device=row.device) >= lengths[:, None], 0)
