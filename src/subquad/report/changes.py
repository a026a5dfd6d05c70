"""What would change a recommendation: another length, another limit, another need; from measurements."""

import math
from collections.abc import Iterator, Mapping, Sequence

from subquad.measure.scaling import Crossover, crossover
from subquad.report import formats
from subquad.report.candidates import WORTH, Candidate, Speed, Wish
from subquad.report.leaderboard import REFERENCE
from subquad.report.merits import DOES, Row, all_reached, how_fast, megabytes, ratio, size_mb

FARTHEST = 8  # times the longest length measured: growth is followed no farther
LEAST_SLOPE = 0.1  # of the ratio on logarithmic axes: below it nothing overtakes anything


def changes(wish: Wish, pick: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """One sentence each. `rows` has softmax and what was measured beside it."""
    yield from _other_lengths(wish, pick, rows)
    yield from _other_limits(wish, pick, rows)
    yield from _other_needs(wish, pick, rows)


def _other_lengths(wish: Wish, pick: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """Where softmax and the others change places."""
    softmax_fits = any(row.label == REFERENCE and row.status in ("recommended", "slower") for row in rows)
    if pick.label != REFERENCE:
        curve = pick.curves.get(wish.decisive, {})
        if not softmax_fits or len(curve) < 2:
            return
        place = crossing(curve)
        if place and place.at_or_below:
            yield f"Below {min(curve):,} tokens, where nothing was measured, fused softmax may be as fast."
        elif place:
            yield f"Below about {formats.significant(place.length, digits=2)} tokens fused softmax is faster."
        return
    for row in rows:
        if row.status == "not faster" and (sentence := _overtaking(wish, row.candidate)):
            yield sentence


def _overtaking(wish: Wish, candidate: Candidate) -> str | None:
    """From where a candidate that is not faster at the length would be; None where nothing tells."""
    curve = candidate.curves.get(wish.decisive, {})
    if len(curve) < 2:
        return None
    (shortest, first), *_, (longest, last) = curve.items()
    verb, unless = DOES[wish.decisive], "where it would have to keep what softmax can do"
    if last.clear:
        place = crossing(curve)
        if not place or place.length <= wish.length:
            return None
        shown = formats.significant(place.length, digits=2)
        return f"From about {shown} tokens on {candidate.label} {verb} faster than fused softmax, {unless}."
    slope = math.log(last.ratio / first.ratio) / math.log(longest / shortest)
    if slope < LEAST_SLOPE or last.ratio >= 1:
        return None
    length = longest * last.ratio ** (-1 / slope)
    if length > FARTHEST * longest:
        return None
    return (
        f"If both go on growing as from {shortest:,} to {longest:,} tokens, {candidate.label} {verb} "
        f"faster than fused softmax from about {formats.significant(length, digits=2)} tokens on, {unless}."
    )


def crossing(curve: Mapping[int, Speed]) -> Crossover | None:
    """Where a candidate begins to be faster than fused softmax, by the medians."""
    ours, theirs = ([getattr(speed, name) for speed in curve.values()] for name in ("ms", "reference_ms"))
    return crossover(list(curve), ours, theirs)


def _other_limits(wish: Wish, pick: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """Which limit would rule out what is recommended, and which would let in what is not."""
    mine = size_mb(wish, pick)
    sizes = {row.label: size for row in rows if (size := size_mb(wish, row.candidate)) is not None}
    possible = [row.label for row in rows if row.status in ("as fast", "slower", "not faster")]
    smallest = min(
        (label for label in possible if label in sizes), key=lambda label: sizes[label], default=""
    )
    if mine is not None and WORTH * sizes.get(smallest, mine) < mine:
        yield (
            f"A memory limit below {megabytes(mine)} would rule {pick.label} out; {smallest} takes "
            f"{megabytes(sizes[smallest])}."
        )
    for row in rows:
        promising = ratio(wish, row.candidate) > ratio(wish, pick) or row.label == REFERENCE
        if row.status == "over memory" and promising:
            yield f"With a limit of at least {megabytes(sizes[row.label])}, {row.label} would be a candidate."


def _other_needs(wish: Wish, pick: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """What would be recommended if less were asked for."""
    losers = [row.candidate for row in rows if row.status == "loses"]
    fastest = max(losers, key=lambda each: ratio(wish, each), default=None)
    if fastest and ratio(wish, fastest) > ratio(wish, pick):
        lost = fastest.loses
        exercises = formats.listed([each.exercise for each in lost])
        yield (
            f"If what {exercises} {'asks' if len(lost) == 1 else 'ask'} for does not matter: {fastest.label} "
            f"{how_fast(fastest, wish.decisive)}, with {all_reached(lost)}."
        )
    possible = [
        row.candidate
        for row in rows
        if row.status in ("as fast", "slower", "not faster") and "forward" in row.candidate.speeds
    ]
    best = max(possible, key=lambda each: each.speeds["forward"].ratio, default=None)
    if wish.streaming or not best or "forward" not in pick.speeds:
        return
    if best.speeds["forward"].clear and best.speeds["forward"].low > pick.speeds["forward"].high:
        yield f"For answers alone, without training, {best.label} is faster: it {how_fast(best, 'forward')}."
