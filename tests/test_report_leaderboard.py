import io
import json
import math
import re
from dataclasses import asdict
from typing import Any

import pytest
import report_samples as made_up
from rich.console import Console

from subquad.cli import tables
from subquad.records import Record
from subquad.report.leaderboard import BoardRow, near_baselines
from subquad.report.question import question_of
from subquad.report.scores import independent
from subquad.report.sections.leaderboard import leaderboard_content
from subquad.report.success import Success


def rows(setting: dict[str, Any] | None = None, **options: Any) -> dict[str, BoardRow]:
    setting = setting or made_up.comparison()
    return {row.label: row for row in made_up.findings(setting, made_up.sample(setting, **options)).rows}


def elsewhere(record: Record) -> Record:
    """The same record, had another machine made it, for one mechanism."""
    if record["spec"].get("mechanism", {}).get("attention") != "linear":
        return record
    return {**record, "machine": {**made_up.MACHINE, "fingerprint": "another"}}


def test_rows_come_best_first_with_baselines_among_them_and_failures_last() -> None:
    labels = list(rows())
    assert labels.index("linear") < labels.index("gradient boosting") < labels.index("reformer:hashes=4")
    assert labels[-1] == "dense"


def test_where_lower_is_better_the_lowest_comes_first() -> None:
    setting = made_up.comparison(made_up.ROWS[:2], metric="mae")
    found = rows(
        setting, quality={"softmax": 2.0, "linear": 1.0}, baselines={"majority": 4.0, "boosting": 3.0}
    )
    assert list(found) == ["linear", "softmax", "gradient boosting", "majority"]
    assert found["linear"].over_baseline == pytest.approx(2.0, abs=0.1)
    assert found["linear"].beside_baseline == "above"
    assert found["linear"].score
    assert found["linear"].success == Success(runs=3, above=3, mean=found["linear"].score.mean)


def test_a_row_stands_above_or_below_the_baseline_only_where_that_can_be_told() -> None:
    found = rows()["infinity"]
    assert found.over_baseline is not None
    assert found.over_baseline > 0
    assert found.beside_baseline == "not told apart"


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_same_examples_tell_a_row_from_the_baseline(seeds: int) -> None:
    setting = made_up.comparison(made_up.ROWS[:2], seeds=seeds)
    assert rows(setting)["linear"].beside_baseline == "above"
    assert rows(setting, baselines={"boosting": 0.9})["linear"].beside_baseline == "below"


def test_without_examples_one_seed_tells_nothing_from_the_baseline() -> None:
    setting = made_up.comparison(made_up.ROWS[:2], seeds=1)
    found = made_up.findings(setting, made_up.older(made_up.sample(setting))).rows
    assert {row.beside_baseline for row in found if row.kind == "mechanism"} == {"not told apart"}
    assert not any(row.against for row in found)


def test_every_pair_of_rows_is_compared_once_and_shown_both_ways() -> None:
    found = rows()
    mechanisms = [row for row in found.values() if row.kind == "mechanism" and row.score]
    for row in mechanisms:
        others = {other.label for other in mechanisms if other is not row}
        assert row.against.keys() == others | {"majority", "gradient boosting"}
        for label in others:
            assert row.against[label].value == -found[label].against[row.label].value
            assert row.against[label].corrected == found[label].against[row.label].corrected


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 494), ("auc", 98), ("macro_f1", 98), ("mae", 494)]
)
def test_a_perfect_score_rests_on_entities_and_on_those_of_the_rarest_class(
    metric: str, expected: float
) -> None:
    assert independent(question_of(made_up.comparison(metric=metric))) == pytest.approx(expected)
    assert independent(question_of(made_up.comparison(metric=metric, summary={}))) == math.inf


def test_without_baselines_nothing_is_said_of_them() -> None:
    found = rows(baselines={})["linear"]
    assert (found.beside_baseline, found.over_baseline, found.success) == (None, None, None)


def test_a_score_equal_to_the_baseline_stands_under_it() -> None:
    setting = made_up.comparison(made_up.ROWS[:1], seeds=1)
    record = made_up.fit(made_up.ROWS[0], 0, setting, score=0.5)
    found = made_up.findings(setting, [record, made_up.baseline("majority", 0, setting, score=0.5)]).rows
    assert [row.label for row in found] == ["majority", "softmax"]
    assert found[1].beside_baseline == "not told apart"


def test_a_failed_seed_is_reported_and_does_not_count_in_the_mean() -> None:
    found = rows()["reformer:hashes=4"]
    assert found.score is not None
    assert len(found.score.scores) == 2
    assert (found.planned, found.finished, found.missing) == (3, 2, 0)
    assert [failure.status for failure in found.failures] == ["not finite"]
    assert found.group == ""


def test_a_row_without_any_score_keeps_its_reasons() -> None:
    found = rows()["dense"]
    assert found.score is None
    assert {failure.status for failure in found.failures} == {"out of memory"}


def test_runs_without_a_record_are_missing() -> None:
    setting = made_up.comparison()
    records = [record for record in made_up.sample(setting) if record["spec"].get("seed") != 2]
    found = {row.label: row for row in made_up.findings(setting, records).rows}
    assert found["linear"].missing == 1
    assert {row.missing for row in made_up.findings(setting, []).rows} == {3}


def test_parameters_over_a_tenth_beyond_softmax_are_marked() -> None:
    found = rows()
    parameters = {label: row.parameters for label, row in found.items() if row.parameters}
    assert parameters["infinity"].marked
    assert not parameters["linear"].marked
    assert parameters["softmax"].beyond_reference == 0


def test_without_softmax_nothing_is_relative() -> None:
    found = rows(made_up.comparison(made_up.ROWS[1:3]))["linear"]
    assert found.ratios is None
    assert found.parameters is not None
    assert found.parameters.beyond_reference is None


def test_figures_of_two_machines_give_no_ratio() -> None:
    setting = made_up.comparison()
    found = made_up.findings(setting, made_up.changed(made_up.sample(setting), elsewhere)).rows
    ratios = {row.label: row.ratios for row in found}
    assert ratios["linear"] is None
    assert ratios["performer:features=64"] is not None


def test_three_seeds_group_what_they_cannot_tell_apart() -> None:
    found = rows(quality={"linear": 0.70, "softmax": 0.70, "performer": 0.65})
    assert found["linear"].group == found["softmax"].group == "a"
    assert found["performer:features=64"].group not in {"", "a"}


def test_one_seed_groups_nothing() -> None:
    assert {row.group for row in rows(made_up.comparison(seeds=1)).values()} == {""}


def test_a_row_becomes_json_and_names_its_causal_form() -> None:
    found = rows()["infinity"]
    written = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert written["form"] == "causal"
    assert written["score"]["interval"]["low"] < written["score"]["mean"]


def test_a_baseline_far_below_is_not_drawn() -> None:
    assert [row.label for row in near_baselines(list(rows().values()))] == ["gradient boosting"]
    near = rows(baselines={"majority": 0.66, "boosting": 0.672})
    assert len(near_baselines(list(near.values()))) == 2


def test_the_size_of_a_state_has_a_column_where_one_was_carried() -> None:
    def carrying(record: Record) -> Record:
        measured = record["measured"]
        return {
            **record,
            "measured": {**measured, "state_mb": 0.25} if "latency_ms" in measured else measured,
        }

    setting = made_up.comparison()
    records = made_up.sample(setting)
    for state, made in (("0.25", made_up.changed(records, carrying)), ("", records)):
        result = made_up.findings(setting, made)
        board = leaderboard_content(result)
        assert ("MB a row" in board) == ("<dt>State</dt>" in board) == bool(state)
        body = board.split("<tr")[2:]
        spans = {int(span) for row in body for span in re.findall(r'colspan="(\d+)"', row)}
        assert {row.count("<td") for row in body if "colspan" not in row} == spans
        page = io.StringIO()
        Console(file=page, width=80).print(tables.costs(result.question, result.rows))
        assert page.getvalue().count("0.250 MB") == (5 if state else 0)
        assert max(map(len, page.getvalue().splitlines())) <= 80
