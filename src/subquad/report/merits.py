"""What speaks for a candidate and against it, in words that name what was measured."""

from dataclasses import dataclass
from typing import Literal

from subquad.report import formats
from subquad.report.candidates import Candidate, ExerciseScore, Wish
from subquad.report.leaderboard import REFERENCE

Status = Literal["recommended", "as fast", "slower", "not faster", "loses", "over memory", "grows", "failed"]
# "as fast": not told apart from the recommended; "not faster": than softmax; "grows": with a stream

DOES = {"forward_backward": "trains", "forward": "answers", "step": "takes the next token"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A candidate that was to be measured, and what came of it; `reason` names the numbers."""

    candidate: Candidate
    status: Status
    reason: str

    @property
    def label(self) -> str:
        return self.candidate.label


def ruled_out(wish: Wish, candidate: Candidate) -> tuple[Status, str] | None:
    """What speaks against a candidate whatever its speed; None where nothing does."""
    if candidate.failure:
        return "failed", candidate.failure
    size = size_mb(wish, candidate)
    if wish.memory_mb is not None and size is not None and size > wish.memory_mb:
        what = "its state is" if wish.streaming else "training takes"
        limit = f"over the limit of {megabytes(wish.memory_mb)}"
        return "over memory", f"{what} {megabytes(size)} at {wish.length:,} tokens, {limit}"
    if wish.bounded and candidate.label == REFERENCE:
        size = candidate.state_mb
        now = f": {megabytes(size)} after {wish.length:,} tokens" if size is not None else ""
        return "grows", f"its state grows with the stream{now}"
    return None


def size_mb(wish: Wish, candidate: Candidate) -> float | None:
    """What counts against the limit."""
    return candidate.state_mb if wish.streaming else candidate.memory_mb


def ratio(wish: Wish, candidate: Candidate) -> float:
    """How many times as fast as fused softmax it is in what decides; 0 where that was not measured."""
    speed = candidate.speeds.get(wish.decisive)
    return speed.ratio if speed else 0.0


def least_share(candidate: Candidate) -> float:
    """Of what softmax has above the baseline, over the exercises; 0 where none tells it."""
    return min((each.share for each in candidate.trained if each.share is not None), default=0.0)


def megabytes(size: float) -> str:
    return f"{formats.significant(size)} MB"


def how_fast(candidate: Candidate, quantity: str) -> str:
    """As in "trains 9.5× as fast as fused softmax (9.1–9.9)"."""
    speed = candidate.speeds[quantity]
    low, high = (formats.significant(x, digits=2) for x in (speed.low, speed.high))
    return f"{DOES[quantity]} {formats.times(speed.ratio)} as fast as fused softmax ({low}–{high})"


def reached(trained: ExerciseScore) -> str:
    """As in "recall: accuracy 0.676 (0.650–0.701), softmax 0.998"."""
    interval = trained.score.interval
    within = f" ({formats.score(interval.low)}–{formats.score(interval.high)})" if interval else ""
    own = f"{trained.metric} {formats.score(trained.score.mean)}{within}"
    return f"{trained.exercise}: {own}, softmax {formats.score(trained.reference.mean)}"


def all_reached(trained: tuple[ExerciseScore, ...]) -> str:
    return "; ".join(map(reached, trained))
