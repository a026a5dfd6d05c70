"""Which attention to take: a pure function of what was measured."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subquad.report.candidates import Candidate, ExerciseScore, Speed, Wish
from subquad.report.formats import score, significant, times
from subquad.report.recommendation import recommend
from subquad.report.statistics import Interval, Summary

WISH = Wish(
    length=4096,
    streaming=False,
    bounded=False,
    memory_mb=None,
    steps=300,
    seeds=1,
    refusals={"longformer": "no causal form"},
    exercises={"recall": 128},
    layer="one layer",
    machines=("Made-up CPU",),
)


def speed(ratio, *, spread=1.05, reference_ms=100.0):
    ms = reference_ms / ratio
    return Speed(ms=ms, reference_ms=reference_ms, low=ratio / spread, high=ratio * spread)


def summary(mean):
    interval = Interval(low=max(0, mean - 0.02), high=min(1, mean + 0.02))
    return Summary(mean=mean, deviation=None, best=mean, interval=interval, over="examples", scores=(mean,))


def reached(share, *, told=True):
    """A candidate's score where softmax has 1 and the baseline 0."""
    return ExerciseScore(
        exercise="recall",
        metric="accuracy",
        score=summary(share),
        reference=summary(1.0 if told else 0.02),
        share=share if told else None,
        apart=share < 0.98,
    )


def candidate(
    label, ratio=1.0, *, share: float | None = 1.0, memory=10.0, spread=1.05, told=True, slope=1.0, **other
):
    quantities = ("step",) if other.get("state_mb") is not None else ("forward_backward", "forward")
    curve = {n: speed(ratio * (n / 4096) ** slope, spread=spread) for n in (1024, 4096, 8192)}
    chosen = {
        "speeds": {name: speed(ratio, spread=spread) for name in quantities},
        "curves": dict.fromkeys(quantities, curve),
        "memory_mb": memory,
        "state_mb": None,
        "trained": (reached(share, told=told),) if share is not None else (),
    }
    return Candidate(label=label, form="bidirectional", **{**chosen, **other})


def softmax(*, memory=40.0, told=True, **other):
    return candidate("softmax", 1.0, spread=1.0, memory=memory, told=told, **other)


def statuses(result):
    return {row.label: row.status for row in result.rows}


ratios = st.floats(0.05, 50)
shares = st.floats(0, 1)
sizes = st.floats(0.1, 1000)
spreads = st.floats(1, 2)
some = st.lists(st.tuples(ratios, shares, sizes, spreads), max_size=6)


def many(drawn):
    """Candidates; not made in the strategy, in which beartype must draw nothing at random."""
    return [
        candidate(f"m{place}", ratio, share=share, memory=memory, spread=spread)
        for place, (ratio, share, memory, spread) in enumerate(drawn)
    ]


@given(some, sizes)
def test_every_candidate_has_one_fate_and_one_of_them_at_most_is_recommended(drawn, limit):
    others = many(drawn)
    result = recommend(replace(WISH, memory_mb=limit), [softmax(), *others])
    assert sorted(statuses(result)) == sorted(["softmax", *(each.label for each in others)])
    recommended = [row.label for row in result.rows if row.status == "recommended"]
    assert recommended == ([result.label] if result.label else [])
    assert all(row.reason for row in result.rows if row.status != "recommended")


@given(some)
def test_what_is_said_to_be_slower_is_slower(drawn):
    result = recommend(WISH, [softmax(), *many(drawn)])
    ratios = {row.label: row.candidate.speeds["forward_backward"].ratio for row in result.rows}
    slower = [row.label for row in result.rows if row.status == "slower"]
    assert result.label
    assert all(ratios[label] < ratios[result.label] for label in slower)


@given(some, sizes, sizes)
def test_more_memory_never_rules_out_more(drawn, first, second):
    others = many(drawn)

    def out(limit):
        result = recommend(replace(WISH, memory_mb=limit), [softmax(), *others])
        return {label for label, status in statuses(result).items() if status == "over memory"}

    assert out(max(first, second)) <= out(min(first, second))


@given(some, st.floats(1, 3))
def test_what_is_faster_than_all_and_keeps_the_quality_is_recommended(drawn, lead):
    others = many(drawn)
    highest = max((each.speeds["forward_backward"].high for each in others), default=1)
    best = candidate("best", 1.2 * max(1.2, highest) * lead)
    result = recommend(WISH, [softmax(), *others, best])
    assert (result.verdict, result.label) == ("take", "best")


@given(some)
def test_softmax_is_recommended_where_nothing_is_clearly_faster(drawn):
    others = many(drawn)
    slow = [
        replace(each, speeds={name: speed(min(x.ratio, 1.0)) for name, x in each.speeds.items()})
        for each in others
    ]
    result = recommend(WISH, [softmax(), *slow])
    assert (result.verdict, result.label) == ("softmax", "softmax")
    assert result.paragraph.startswith("Use fused softmax")


@given(some)
def test_what_loses_too_much_is_never_recommended_while_softmax_is_within_the_limits(drawn):
    others = many(drawn)
    result = recommend(WISH, [softmax(), *others])
    assert result.verdict in ("take", "softmax")
    losers = {each.label for each in others if each.loses}
    assert result.label not in losers


@given(some, sizes)
def test_a_better_score_never_costs_the_recommendation(drawn, limit):
    others = many(drawn)
    wish = replace(WISH, memory_mb=limit)
    result = recommend(wish, [softmax(), *others])
    if result.verdict == "take":
        better = [replace(x, trained=(reached(1.0),)) if x.label == result.label else x for x in others]
        assert recommend(wish, [softmax(), *better]).label == result.label


@pytest.mark.parametrize("order", [("plain", "clever"), ("clever", "plain")])
def test_of_two_that_cannot_be_told_apart_the_first_is_recommended(order):
    speeds = {"plain": 5.0, "clever": 5.1}
    result = recommend(WISH, [softmax(), *(candidate(name, speeds[name]) for name in order)])
    assert result.label == order[0]
    assert statuses(result)[order[1]] == "as fast"
    assert order[1] in result.paragraph


def test_reasons_and_paragraph_name_what_was_measured():
    fast = candidate("fast", 5.0, memory=12.5)
    others = [
        candidate("lossy", 9.0, share=0.4),
        candidate("slow", 0.7),
        candidate("large", 6.0, memory=3100.0),
        candidate("medium", 2.0),
    ]
    result = recommend(replace(WISH, memory_mb=100.0), [softmax(), *others, fast])
    reasons = {row.label: row.reason for row in result.rows}
    assert result.label == "fast"
    for text in (times(5.0), significant(12.5), significant(40.0), score(1.0), "4,096 tokens"):
        assert text in result.paragraph
    assert "0.400 (0.380–0.420), softmax 1.000" in reasons["lossy"]
    assert times(0.7) in reasons["slow"]
    assert "3,100 MB at 4,096 tokens, over the limit of 100 MB" in reasons["large"]
    assert times(2.0) in reasons["medium"]
    assert result.refusals == {"longformer": "no causal form"}


def test_a_exercise_that_softmax_does_not_pass_tells_nothing_and_the_answer_is_open():
    result = recommend(WISH, [softmax(told=False), candidate("fast", 5.0, share=0.02, told=False)])
    assert (result.verdict, result.label) == ("open", "fast")
    assert any("recall tells nothing" in note for note in result.notes)
    asked_for_none = replace(WISH, exercises={})
    result = recommend(asked_for_none, [softmax(share=None), candidate("fast", 5.0, share=None)])
    assert (result.verdict, result.label) == ("take", "fast")


def test_where_softmax_is_ruled_out_the_least_loss_is_a_compromise_and_nothing_is_nothing():
    wish = replace(WISH, memory_mb=20.0)
    lossy = [candidate("worse", 9.0, share=0.1), candidate("bad", 0.5, share=0.5)]
    result = recommend(wish, [softmax(), *lossy])
    assert (result.verdict, result.label) == ("compromise", "bad")
    assert "over the limit of 20.0 MB" in result.paragraph
    assert recommend(wish, [softmax(), candidate("slow", 0.5)]).verdict == "take"
    result = recommend(wish, [softmax(), candidate("large", 9.0, memory=30.0)])
    assert (result.verdict, result.label) == ("nothing", None)


@pytest.mark.parametrize(("ratio", "said"), [(0.5, "slower"), (1.02, "not clearly faster")])
def test_what_is_not_faster_is_called_slower_where_it_is(ratio: float, said: str):
    result = recommend(WISH, [softmax(), candidate("other", ratio)])
    (other,) = (row for row in result.rows if row.label == "other")
    assert other.reason.endswith(f", which is {said}")


def test_a_bounded_state_rules_softmax_out_with_the_size_of_its_state():
    wish = replace(WISH, streaming=True, bounded=True)
    slow = candidate("linear", 0.9, state_mb=0.02)
    result = recommend(wish, [softmax(state_mb=8.4), slow])
    assert result.label == "linear"
    assert statuses(result)["softmax"] == "grows"
    assert "8.40 MB after 4,096 tokens" in result.paragraph
    finite = recommend(replace(wish, bounded=False), [softmax(state_mb=8.4), slow])
    assert finite.label == "softmax"


def test_a_candidate_whose_run_failed_is_never_recommended_and_says_why():
    result = recommend(WISH, [softmax(), candidate("fast", 5.0, failure="fit timeout: not done after 9 s")])
    assert result.label == "softmax"
    assert [row.reason for row in result.rows if row.label == "fast"] == ["fit timeout: not done after 9 s"]


def sentences(result):
    return " ".join(result.changes)


def test_a_length_changes_the_answer_where_the_curves_cross():
    taken = recommend(WISH, [softmax(), candidate("fast", 4.0)])  # as fast as softmax at 1,024
    assert "Below about 1,000 tokens fused softmax is faster." in sentences(taken)
    near = recommend(WISH, [softmax(), candidate("slow", 0.8)])  # 1.6 times as fast at 8,192
    assert "From about 5,100 tokens on slow trains faster" in sentences(near)
    far = recommend(WISH, [softmax(), candidate("slow", 0.25)])
    assert "If both go on growing as from 1,024 to 8,192 tokens, slow" in sentences(far)
    assert "from about 16,000 tokens on" in sentences(far)
    never = recommend(WISH, [softmax(), candidate("slow", 0.25, slope=0.0)])
    assert "faster than fused softmax from" not in sentences(never)


def test_less_need_and_another_limit_change_the_answer():
    lossy, fast = candidate("lossy", 9.0, share=0.4), candidate("fast", 3.0, memory=12.0)
    small = candidate("small", 2.0, memory=1.0)
    text = sentences(recommend(WISH, [softmax(), lossy, fast, small]))
    assert re.search(r"If what recall asks for does not matter: lossy trains 9\.0× as fast", text)
    assert "A memory limit below 12.0 MB would rule fast out; small takes 1.00 MB." in text
    large = candidate("large", 9.0, memory=3100.0)
    text = sentences(recommend(replace(WISH, memory_mb=100.0), [softmax(), fast, large]))
    assert "With a limit of at least 3,100 MB, large would be a candidate." in text


def test_who_only_answers_faster_is_named():
    fast = candidate("fast", 5.0)
    quick = replace(candidate("quick", 3.0), speeds={"forward_backward": speed(3.0), "forward": speed(9.0)})
    assert "For answers alone, without training, quick is faster" in sentences(
        recommend(WISH, [softmax(), fast, quick])
    )
