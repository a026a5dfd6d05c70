"""Knobs that are turned, and the fronts that no row beats in both."""

from itertools import pairwise
from typing import Any

import pytest
import report_samples as made_up

from subquad.records import Record
from subquad.report.figures.figure import Figure, Line, Panel
from subquad.report.findings import Findings
from subquad.report.sections.quality import quality_against_speed
from subquad.report.sweeps import sweeps

FEATURES = (128, 32, 256, 64)
ROWS = (
    made_up.row("softmax"),
    made_up.row("linear"),
    *(made_up.row("performer", features=features) for features in FEATURES),
)


def turned(record: Record) -> Record:
    """More features are better, and slower."""
    features = record["spec"].get("mechanism", {}).get("options", {}).get("features")
    if record["kind"] == "fit" and features:
        more = features / 2_000
        examples = record["result"]["examples"]
        examples["contribution"] = [part + more for part in examples["contribution"]]
        metric = next(name for name in record["result"]["test"] if name != "loss")
        record["result"]["test"][metric] += more
        record["measured"]["train_units_per_second"] *= 64 / features
        record["measured"]["training_peak_mb"] *= features / 64
    return record


def findings(metric: str = "auc", rows: tuple[dict[str, Any], ...] = ROWS) -> Findings:
    setting = made_up.comparison(rows, metric=metric)
    return made_up.findings(setting, made_up.changed(made_up.sample(setting), turned))


def drawn(result: Findings) -> Figure:
    figure = quality_against_speed(result.rows, result.styles, result.question)
    assert figure
    return figure


def front(panel: Panel) -> Line:
    (line,) = [mark for mark in panel.marks if isinstance(mark, Line) and mark.words.startswith("Pareto")]
    return line


def test_rows_that_differ_in_one_number_are_joined_in_its_order() -> None:
    (sweep,) = sweeps(findings().rows)
    assert (sweep.mechanism, sweep.knob, sweep.values) == ("performer", "features", (32, 64, 128, 256))
    assert sweep.labels == tuple(f"performer:features={features}" for features in (32, 64, 128, 256))


def test_two_knobs_make_a_grid_and_never_a_line_across() -> None:
    pairs = [(features, redraw) for features in (8, 16) for redraw in (0, 5)]
    rows = tuple(made_up.row("performer", features=features, redraw=redraw) for features, redraw in pairs)
    found = sweeps(findings(rows=rows).rows)
    assert sorted(sweep.knob for sweep in found) == ["features", "features", "redraw", "redraw"]
    assert all(len(sweep.labels) == 2 for sweep in found)


def test_words_and_truths_are_no_knobs() -> None:
    rows = tuple(
        made_up.row("performer", kind=kind, orthogonal=truth)
        for kind in ("relu", "softmax")
        for truth in (False, True)
    )
    assert sweeps(findings(rows=rows).rows) == []


def test_a_knob_is_drawn_over_speed_latency_and_memory() -> None:
    figure = drawn(findings())
    assert [panel.title for panel in figure.panels] == [
        *("In training: AUC over speed", "In use: AUC over latency", "In training: AUC over memory")
    ]
    for panel in figure.panels:
        lines = [mark for mark in panel.marks if isinstance(mark, Line) and "by features" in mark.words]
        assert [len(line.points) for line in lines] == [4]
    assert "performer by features" in figure.caption
    assert len(drawn(findings(rows=ROWS[:3])).panels) == 2


@pytest.mark.parametrize("metric", ["auc", "mae"])
def test_no_row_is_beyond_the_front_and_those_on_it_are_corners(metric: str) -> None:
    result = findings(metric)
    higher = metric == "auc"
    scored = [row for row in result.rows if row.kind == "mechanism" and row.score and row.costs]
    for place, (panel, better) in enumerate(zip(drawn(result).panels, (1, -1, -1), strict=True)):
        line, corners = front(panel), []
        for row in scored:
            assert row.score
            assert row.costs
            costs = row.costs
            x = (costs.units_per_second, costs.latency_ms, costs.training_peak_mb)[place]
            assert x
            corners.append((x, row.score.mean))
        sign = 1 if higher else -1
        beaten = [
            any(
                better * other[0] >= better * at[0] and sign * other[1] >= sign * at[1] and other != at
                for other in corners
            )
            for at in corners
        ]
        assert {at for at, is_beaten in zip(corners, beaten, strict=True) if not is_beaten} == {
            at for at in corners if at in line.points
        }
        assert all(one[0] == other[0] or one[1] == other[1] for one, other in pairwise(line.points))


def test_softmax_is_named_whatever_it_reached() -> None:
    for panel in drawn(findings()).panels:
        assert any(getattr(mark, "text", "") == "softmax" for mark in panel.marks)
