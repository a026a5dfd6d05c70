"""Which attention to take for a purpose, from what was measured of candidates: a pure function.

Fused softmax is the answer unless a candidate is clearly faster at the length, keeps what softmax can do in
the exercises, and is within the limits. Among those the fastest is recommended, and of several that cannot
be told apart the first, which is the simplest. What nobody measured is not claimed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from subquad.records import Record
from subquad.report import formats
from subquad.report.candidates import KEEPS, Candidate, Wish, candidates_of, wish_of
from subquad.report.changes import changes
from subquad.report.merits import (
    DOES,
    Row,
    Status,
    all_reached,
    how_fast,
    least_share,
    megabytes,
    ratio,
    ruled_out,
    size_mb,
)
from subquad.report.statistics import MIN_SEEDS

Verdict = Literal["take", "softmax", "compromise", "open", "nothing"]
# "compromise": softmax is ruled out, and no candidate keeps what it has; "open": nothing is known of quality


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Which attention to take, and why.

    label: the mechanism to take. None: nothing fits.
    paragraph: the answer in sentences.
    rows: softmax and all candidates that were to be measured: the recommended first, then by speed.
    refusals: why others were not measured, by label.
    changes: what would change the answer.
    notes: what it rests on.
    """

    verdict: Verdict
    label: str | None
    paragraph: str
    rows: tuple[Row, ...]
    refusals: Mapping[str, str]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    wish: Wish


def recommendation_of(document: Mapping[str, Any], records: Sequence[Record]) -> Recommendation:
    """What the records of a plan's runs say. `document`: `experiments.choice.Plan.document`."""
    return recommend(wish_of(document, records), candidates_of(document, records))


def shortlist(document: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """The labels of the candidates against which nothing speaks once they are measured: to be trained."""
    wish, candidates = wish_of(document, records), candidates_of(document, records)
    return [candidate.label for candidate in _fast(wish, candidates)]


def recommend(wish: Wish, candidates: Sequence[Candidate]) -> Recommendation:
    """The answer. `candidates`: softmax, and then the others from the simplest."""
    softmax, fast = candidates[0], _fast(wish, candidates)
    pick, verdict = _pick(wish, softmax, fast)
    rows = [_row(wish, candidate, pick, softmax) for candidate in candidates]
    rows.sort(key=lambda row: (row.candidate is not pick, -ratio(wish, row.candidate)))
    return Recommendation(
        verdict=verdict,
        label=pick.label if pick else None,
        paragraph=_paragraph(wish, verdict, pick, softmax, rows),
        rows=tuple(rows),
        refusals=wish.refusals,
        changes=tuple(changes(wish, pick, rows)) if pick else (),
        notes=tuple(_notes(wish, candidates)),
        wish=wish,
    )


def _fast(wish: Wish, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those within the limits and clearly faster than softmax; all those within, where softmax is not."""
    softmax, *others = candidates
    possible = [each for each in others if not ruled_out(wish, each) and wish.decisive in each.speeds]
    if ruled_out(wish, softmax):
        return possible
    return [each for each in possible if each.speeds[wish.decisive].clear]


def _pick(wish: Wish, softmax: Candidate, fast: Sequence[Candidate]) -> tuple[Candidate | None, Verdict]:
    able = [candidate for candidate in fast if not candidate.loses]
    if able:
        fastest = max((each.speeds[wish.decisive] for each in able), key=lambda speed: speed.ratio)
        pick = next(each for each in able if each.speeds[wish.decisive].alike(fastest))
        return pick, "take" if pick.keeps or not wish.exercises else "open"
    if not ruled_out(wish, softmax):
        return softmax, "softmax"
    return (max(fast, key=least_share), "compromise") if fast else (None, "nothing")


def _row(wish: Wish, candidate: Candidate, pick: Candidate | None, softmax: Candidate) -> Row:
    status, reason = _fate(wish, candidate, pick, softmax)
    return Row(candidate=candidate, status=status, reason=reason)


def _fate(wish: Wish, candidate: Candidate, pick: Candidate | None, softmax: Candidate) -> tuple[Status, str]:
    if candidate is pick:
        return "recommended", ""
    if out := ruled_out(wish, candidate):
        return out
    if wish.decisive not in candidate.speeds:
        return "failed", "not measured yet"
    assert pick  # there is one where anything is within the limits
    if candidate is softmax:
        return "slower", f"{pick.label} {how_fast(pick, wish.decisive)}"
    speed, claim = candidate.speeds[wish.decisive], f"it {how_fast(candidate, wish.decisive)}"
    if not speed.clear and not ruled_out(wish, softmax):
        return "not faster", f"{claim}, which is {'slower' if speed.high < 1 else 'not clearly faster'}"
    if candidate.loses:
        return "loses", all_reached(candidate.loses)
    if speed.alike(pick.speeds[wish.decisive]) or speed.ratio > pick.speeds[wish.decisive].ratio:
        return "as fast", f"{claim}; {pick.label} is not told apart from the fastest, and is simpler"
    return "slower", f"{claim}, and {pick.label} is faster"


def _paragraph(
    wish: Wish, verdict: Verdict, pick: Candidate | None, softmax: Candidate, rows: Sequence[Row]
) -> str:
    out = ruled_out(wish, softmax)
    if pick is None:
        assert out
        return f"Nothing that was measured fits. Softmax is ruled out: {out[1]}. No candidate is left."
    if pick is softmax:
        return _softmax_paragraph(wish, rows)
    claims = [how_fast(pick, wish.decisive)]
    claims += [
        f"{DOES[name]} {formats.times(speed.ratio)}"
        for name, speed in pick.speeds.items()
        if name != wish.decisive
    ]
    claim = f"At {wish.length:,} tokens it {formats.listed(claims)}"
    mine, theirs = size_mb(wish, pick), size_mb(wish, softmax)
    if mine is not None and theirs is not None:
        what = "with a state of" if wish.streaming else "in"
        claim += f", {what} {megabytes(mine)} instead of {megabytes(theirs)}"
    claim += f". Softmax is ruled out: {out[1]}." if out else "."
    equals = [row.label for row in rows if row.status == "as fast"]
    if equals:
        claim += f" {formats.few(equals)} cannot be told apart from it in speed."
    if verdict == "compromise":
        least = f"{pick.label} loses least ({all_reached(pick.loses)})."
        return f"Nothing that fits keeps what softmax can do. {least} {claim}"
    if verdict == "open":
        return f"Nothing is known of quality, and {pick.label} is the fastest. {claim}"
    told = tuple(each for each in pick.trained if each.share is not None)
    kept = f" It keeps what softmax can do ({all_reached(told)})." if told else ""
    return f"Take {pick.label}. {claim}{kept}"


def _softmax_paragraph(wish: Wish, rows: Sequence[Row]) -> str:
    at = f"at {wish.length:,} tokens"
    losers = [row for row in rows if row.status == "loses"]
    slower = [row for row in rows if row.status == "not faster"]
    if losers:
        best = max(losers, key=lambda row: least_share(row.candidate))
        if len(losers) == 1:
            return f"Use fused softmax: {best.label}, faster {at}, loses too much ({best.reason})."
        loss = f"{best.label} loses least ({best.reason})."
        return f"Use fused softmax: {len(losers)} are faster {at}, and none keeps what it can do. {loss}"
    if slower:
        nearest = f"{slower[0].label} comes nearest: {slower[0].reason}"
        return f"Use fused softmax: nothing is clearly faster {at}. {nearest}."
    return f"Use fused softmax: no other candidate is left {at}."


def _notes(wish: Wish, candidates: Sequence[Candidate]) -> Iterator[str]:
    """What the answer rests on."""
    where = formats.listed(list(wish.machines)) if wish.machines else "no machine yet"
    yield f"Measured: {wish.layer}; {where}."
    trained = [each for candidate in candidates for each in candidate.trained]
    for exercise, softmax in {
        each.exercise: each.reference for each in trained if each.share is None
    }.items():
        yield (
            f"{exercise} tells nothing: softmax itself, {formats.score(softmax.mean)}, is not above the "
            f"baseline after {wish.steps:,} steps."
        )
    if not trained:
        return
    yield (
        f"To keep what softmax can do is to have {KEEPS:.0%} of what it has above the best baseline, or not "
        "to be told apart from it by the test examples."
    )
    if wish.seeds < MIN_SEEDS:
        seeds = "one seed" if wish.seeds == 1 else f"{wish.seeds} seeds"
        yield (
            f"Each was trained for {wish.steps:,} steps with {seeds}: who does well can do it; who does not "
            "may need more steps or another seed."
        )
    if shorter := sorted({tokens for tokens in wish.exercises.values() if tokens < wish.length}):
        numbers = formats.listed([f"{tokens:,}" for tokens in shorter])
        yield (
            f"They were trained on {numbers} tokens: a window, a rank or landmarks of as many would lose "
            f"nothing there, and may at {wish.length:,}."
        )
