"""Scores by what answers differ in: what the records say, and how it is drawn."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pytest
import report_samples as made_up

from subquad.records import Record
from subquad.report.figures.figure import Line, Sign
from subquad.report.findings import Findings
from subquad.report.page import render
from subquad.report.sections.parts import parts_figure


def findings(records: list[Record] | None = None) -> Findings:
    setting = made_up.comparison()
    return made_up.findings(setting, made_up.sample(setting) if records is None else records)


def with_parts(parts: Mapping[str, Any]) -> Findings:
    """One title, the same for every run."""
    records = made_up.sample(made_up.comparison())
    for record in records:
        if "breakdown" in record["result"]:
            record["result"]["breakdown"] = {"position": parts}
    return findings(records)


def numbered(count: int) -> dict[str, Any]:
    return {f"{64 * i:,} to {64 * i + 63:,}": {"value": 0.5 + i / 100, "count": 64} for i in range(count)}


def test_a_part_has_the_score_of_every_seed() -> None:
    result = findings()
    (length, _) = result.parts
    done = [
        record["result"]["breakdown"]["length of the history"]["2 to 205"]["value"]
        for record in result.records
        if record["kind"] == "fit" and record["spec"]["mechanism"]["attention"] == "reformer"
        if record["status"] == "ok"
    ]
    assert len(done) == 2
    assert sorted(length.scores["reformer:hashes=4"][0]) == sorted(done)
    assert length.means("reformer:hashes=4")[0] == pytest.approx(fmean(done))


def test_rows_come_best_first_and_the_best_baseline_is_named() -> None:
    result = findings()
    for by in result.parts:
        assert list(by.scores) == [row.label for row in result.rows if row.score]
        assert by.baseline == "gradient boosting"


def test_ranges_of_numbers_are_joined_by_lines_and_other_parts_are_not() -> None:
    result = findings()
    figure = parts_figure(result.parts, result.styles, "AUC")
    assert figure
    length, region = figure.panels
    rows = {mark.row for mark in length.marks if isinstance(mark, Line)}
    assert rows == {None, *(label for label, _ in figure.legend)}
    assert not any(isinstance(mark, Line) and mark.row for mark in region.marks)


def test_marks_of_one_part_stand_side_by_side() -> None:
    result = findings()
    figure = parts_figure(result.parts, result.styles, "AUC")
    assert figure
    for place, panel in enumerate(figure.panels):
        places = [mark.at[0] for mark in panel.marks if isinstance(mark, Sign)]
        assert (len(set(places)) == len(places)) == (place == 1)


def test_a_part_without_the_metric_is_said_and_not_drawn() -> None:
    result = findings()
    figure = parts_figure(result.parts, result.styles, "AUC")
    assert figure
    assert "Of one class alone, and so without AUC: abroad." in figure.caption
    assert all("abroad" not in mark.words for mark in figure.panels[1].marks if isinstance(mark, Sign))
    heading = next(place for place, column in enumerate(figure.table.columns) if "abroad (17)" in column)
    assert {row[heading] for row in figure.table.rows} == {None}


@pytest.mark.parametrize("count", [2, 4, 5, 16, 64])
def test_names_below_a_panel_have_room(count: int) -> None:
    result = with_parts(numbered(count))
    figure = parts_figure(result.parts, result.styles, "AUC")
    assert figure
    (panel,) = figure.panels
    assert sum(len(name) for _, name in panel.x.ticks) <= 46
    assert len(panel.x.ticks) <= 6
    assert all(panel.x.low < at < panel.x.high for at, _ in panel.x.ticks)


def test_one_part_alone_is_no_comparison_of_parts() -> None:
    assert with_parts(numbered(1)).parts == []


def test_without_parts_there_is_no_section() -> None:
    setting = made_up.comparison()
    bare = made_up.sample(setting)
    for record in bare:
        record["result"].pop("breakdown", None)
    assert 'id="parts"' not in render(made_up.alone(findings(bare)))
    assert 'id="parts"' in render(made_up.alone(findings()))
    assert 'id="parts"' not in render(made_up.alone(findings([])))
