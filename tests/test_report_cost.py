from collections.abc import Sequence

import pytest
import report_samples as made_up

from subquad.records import Record
from subquad.report.cost import Curve, part, references

SETTING = made_up.comparison()


def curves(records: Sequence[Record]) -> Sequence[Curve]:
    return made_up.findings(SETTING, records).cost_curves


def found() -> dict[str, Curve]:
    return {curve.label: curve for curve in curves(made_up.sample(SETTING)[::-1])}


def test_curves_go_from_short_to_long_in_the_order_asked() -> None:
    assert list(found()) == [row["label"] for row in made_up.ROWS]
    assert [cell.length for cell in found()["linear"].cells] == list(made_up.LENGTHS)


def test_exponents_tell_linear_cost_from_quadratic() -> None:
    exponents = {label: curve.scaling("forward_ms") for label, curve in found().items()}
    linear, softmax = exponents["linear"], exponents["softmax"]
    assert linear is not None
    assert softmax is not None
    assert linear.exponent == pytest.approx(1, abs=0.15)
    assert softmax.exponent == pytest.approx(2, abs=0.15)


def test_two_lengths_have_no_exponent_and_it_says_why() -> None:
    records = [record for record in made_up.sample(SETTING) if record["spec"].get("length") in (512, 1024)]
    scaling = curves(records)[1].scaling("forward_ms")
    assert scaling is not None
    assert (scaling.exponent, scaling.note) == (None, "needs three lengths")
    assert scaling.crossover is not None


def test_a_crossover_lies_where_the_lines_cross() -> None:
    scaling = found()["linear"].scaling("forward_ms")
    assert scaling is not None
    assert scaling.crossover is not None
    assert 512 < scaling.crossover.length < 2048
    assert scaling.at_longest < 1


def test_a_mechanism_that_never_overtakes_has_no_crossover() -> None:
    scaling = found()["reformer:hashes=4"].scaling("forward_ms")
    assert scaling is not None
    assert scaling.crossover is None


def test_failed_cells_are_failures_and_not_points() -> None:
    dense = found()["dense"]
    assert [cell.length for cell in dense.cells] == [512, 1024, 2048]
    assert dense.failed_lengths == (4096, 8192)
    assert [failure.run for failure in dense.failures] == ["4,096 tokens", "8,192 tokens"]


def test_a_curve_over_two_machines_has_no_slope_and_no_crossover() -> None:
    records = made_up.sample(SETTING)
    for record in records:
        if record["kind"] == "bench" and record["spec"]["length"] > 2048:
            record["machine"] = {**made_up.MACHINE, "fingerprint": "another"}
    assert all(curve.scaling("forward_ms") is None for curve in curves(records) if curve.label != "dense")


def test_what_was_not_measured_or_not_seen_has_no_scaling() -> None:
    records = made_up.sample(SETTING)
    for record in records:
        if record["kind"] == "bench" and record["status"] == "ok":
            del record["measured"]["forward_backward"]
            record["measured"]["memory"]["mb"] = 0.0
    curve = curves(records)[0]
    assert curve.scaling("forward_backward_ms") is None
    assert curve.scaling("peak_mb") is None
    assert curve.scaling("forward_ms") is not None


def test_causal_and_bidirectional_mechanisms_have_baselines_of_their_own() -> None:
    records = made_up.sample(SETTING)
    for record in records:
        if record["kind"] == "bench" and record["status"] == "ok":
            record["measured"]["memory"]["reference_mb"] = (
                1.0 if record["spec"]["mechanism"]["causal"] else 2.0
            )
    lines = references(curves(records), "peak_mb")
    assert lines == {
        "bidirectional": [(length, 2.0) for length in made_up.LENGTHS],
        "causal": [(length, 1.0) for length in made_up.LENGTHS],
    }


def test_without_cells_there_is_no_curve() -> None:
    assert curves([]) == []


def test_a_roofline_is_shown_as_a_part_and_older_records_have_none() -> None:
    records = made_up.sample(SETTING)
    assert not any(curve.rooflines("forward_ms") for curve in curves(records))
    for record in records:
        if record["kind"] == "bench" and record["status"] == "ok":
            timed = record["measured"]["forward"]
            timed["roofline_ms"] = timed["ms"]["median"] / 4
            timed["peers_ms"] = {"theirs": {"median": 7.0}}
    curve = curves(records)[0]
    assert len(curve.rooflines("forward_ms")) == len(curve.cells)
    assert not curve.rooflines("peak_mb")
    assert part(curve.cells[0], "forward_ms") == pytest.approx(0.25)
    assert part(curve.cells[0], "peak_mb") is None
    assert curve.cells[0].peers == {"theirs": {"forward_ms": 7.0}}
