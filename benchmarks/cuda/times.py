"""A race: everyone who takes part in a work at one length, called in turns, and the memory each takes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypedDict

from torch import Tensor

from benchmarks.cuda import contenders, decoding, models
from benchmarks.cuda.contenders import Call, Contenders, Missing, one_line, why_refused
from benchmarks.cuda.plan import Race, Scale, find
from benchmarks.cuda.rivals import AGREES
from benchmarks.cuda.targets import Work
from subquad.measure.memory import peak_memory
from subquad.measure.timing import interleaved
from subquad.ops.backends import Refused

ROUNDS = 5
LIMIT = 10  # timing ends after this many times the seconds asked for, however few the rounds
AGREEMENT = 0.05  # of norms, between a peer's outputs and ours, all in bfloat16


class Times(TypedDict):
    """`ms` and `mb`, peak memory beyond the inputs, of whoever ran; `missing`: why the others did not."""

    ms: dict[str, dict[str, float]]  # the fields of a `Timing`
    mb: dict[str, float]
    missing: dict[str, str]


def measured(race: Race, scale: Scale, without: Mapping[str, str]) -> Times:
    """`without`: why some of our backends do not take part. Without any of ours, nobody does."""
    work, tokens = find(race.work), scale.tokens(race.length)
    made = of_kind(work, race, tokens, scale)
    entered = {name: Missing(without[name]) if name in without else call for name, call in made.items()}
    ready, missing = enter(entered, work.backends)
    if ready.keys().isdisjoint(work.backends):
        return Times(ms={}, mb={}, missing=missing)
    memory = {name: peak_memory(call, device=scale.device).mb for name, call in ready.items()}
    timings = interleaved(
        ready,
        repeats=ROUNDS,
        seconds=scale.seconds,
        limit=LIMIT * scale.seconds,
        warmup=scale.seconds / 10,
        device=scale.device,
    )
    return Times(ms={name: asdict(timing) for name, timing in timings.items()}, mb=memory, missing=missing)


def of_kind(work: Work, race: Race, tokens: int, scale: Scale) -> Contenders:
    if work.kind == "decoding":
        return decoding.steps(work, tokens, scale=scale)
    if work.kind == "mechanism":
        return contenders.layers(work, race.passes, tokens, scale=scale)
    return models.steps(work, tokens, scale=scale)


def enter(entered: Contenders, ours: Sequence[str]) -> tuple[dict[str, Call], dict[str, str]]:
    """Whoever could be called, and why others could not; peers have to agree with ours where they can."""
    ready, missing = {}, {}
    expected: Tensor | None = None
    for name, call in entered.items():
        if isinstance(call, Missing):
            missing[name] = call.reason
            continue
        try:
            out = call()
            if isinstance(out, Tensor):
                expected = out if expected is None and name in ours else expected
                require_agreement(name, out, expected)
            ready[name] = call
        except Refused as error:
            missing[name] = f"it refuses: {why_refused(error)}"
        except Exception as error:  # whatever others raise: one is left out, and the race goes on
            missing[name] = one_line(error)
    return ready, missing


def require_agreement(name: str, out: Tensor, expected: Tensor | None) -> None:
    if not out.isfinite().all():
        raise ArithmeticError("its numbers are not finite")
    if name in AGREES and expected is not None:
        off = ((out.float() - expected.float()).norm() / expected.float().norm()).item()
        if not off <= AGREEMENT:
            raise ArithmeticError(f"its outputs are off by {off:.2g} of their norm")
