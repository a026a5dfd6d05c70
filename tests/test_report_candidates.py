"""What records say of candidates. EVERY FIGURE HERE IS MADE UP; none was measured."""

import pytest
import report_samples as made_up

from subquad.report.candidates import candidates_of, wish_of

SETTING = made_up.comparison(seeds=1, metric="accuracy")
ROWS = [made_up.row("softmax"), made_up.row("linear")]
DOCUMENT = {
    "length": 4096,
    "causal": False,
    "streaming": False,
    "bounded": False,
    "memory_mb": None,
    "steps": 300,
    "seeds": 1,
    "refusals": {},
    "inputs": {"heads": 4, "head_dim": 32, "batch": 1, "dtype": "float32"},
    "place": {"device": "cpu", "threads": 1},
    "rows": ROWS,
    "exercises": [
        {
            "label": "recall",
            "fingerprint": SETTING["data"]["fingerprint"],
            "tokens": 128,
            "metric": "accuracy",
            "metric_label": "accuracy",
            "higher_is_better": True,
            "groups": 494,
        }
    ],
}
CELLS = [made_up.bench(ROWS[1], length, SETTING) for length in (1024, 4096, 8192)]


def with_rounds(record, repeats, ratio):
    """The cell, had it been timed in so many rounds, with that ratio of medians."""
    timing = {"median": 1.0, "low": 1.0, "high": 1.0, "repeats": repeats}
    theirs = {**timing, "median": ratio, "low": ratio, "high": ratio}
    timed = {"ms": timing, "reference_ms": theirs}
    return {**record, "measured": {**record["measured"], "forward_backward": timed}}


def trained(**scores):
    records = [made_up.baseline("majority", 0, SETTING, score=0.1)]
    records += [made_up.fit(made_up.row(name), 0, SETTING, score=score) for name, score in scores.items()]
    _, linear = candidates_of(DOCUMENT, [*CELLS, *records])
    return linear.trained


def test_few_rounds_say_less():
    def speed(repeats, ratio):
        records = [with_rounds(record, repeats, ratio) for record in CELLS]
        return candidates_of(DOCUMENT, records)[1].speeds["forward_backward"]

    assert speed(9, 1.4).clear
    assert not speed(1, 1.4).clear
    assert speed(1, 1.8).clear
    assert not speed(9, 1.05).clear


def test_softmax_is_what_was_timed_beside_the_candidates():
    softmax, linear = candidates_of(DOCUMENT, CELLS)
    reference = CELLS[1]["measured"]["forward"]["reference_ms"]["median"]
    assert softmax.speeds["forward"].ms == linear.speeds["forward"].reference_ms == reference
    assert softmax.memory_mb == CELLS[1]["measured"]["memory"]["reference_mb"]
    assert list(linear.curves["forward"]) == [1024, 4096, 8192]


@pytest.mark.parametrize(("place", "out"), [(1, True), (2, False)])
def test_a_failure_at_the_length_speaks_against_a_candidate_and_one_beyond_it_does_not(place, out):
    records = [*CELLS]
    records[place] = made_up.failed(CELLS[place], "out of memory", "killed")
    _, linear = candidates_of(DOCUMENT, records)
    assert linear.failure == ("bench out of memory: killed" if out else "")


def test_a_loss_is_told_by_the_test_examples_and_by_its_size():
    (score,) = trained(softmax=0.9, linear=0.5)
    assert score.share == pytest.approx(0.5)
    assert score.apart
    assert score.loses
    (score,) = trained(softmax=0.9, linear=0.86)
    assert score.share == pytest.approx(0.95)
    assert not score.loses


def test_nothing_is_told_where_softmax_does_not_clear_the_baseline_or_was_not_trained():
    (score,) = trained(softmax=0.1, linear=0.5)
    assert score.share is None
    assert not score.loses
    assert trained(linear=0.5) == ()


def test_a_wish_names_the_layer_and_the_machine():
    wish = wish_of(DOCUMENT, CELLS)
    assert wish.layer.startswith("one bidirectional layer of 4 heads, 32 wide each")
    assert wish.machines == (made_up.MACHINE["cpu"],)
