"""The terminal says everything within 80 columns, whatever it is given, and JSON says the same."""

import io
import json
import re
from pathlib import Path

import pytest
from report_samples import TWELVE, comparison, findings, row, sample, whole
from rich.console import Console

from subquad.cli import tables
from subquad.cli.output import show_comparison
from subquad.records import Store
from subquad.report.cost import QUANTITIES
from subquad.report.page import render

HOSTILE = "[red]mine[/red]"


def shown(*parts, width=80):
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(*parts)
    return page.getvalue()


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_row_stands_in_80_columns_with_its_score_and_its_fate(seeds):
    setting = comparison(seeds=seeds)
    result = findings(setting, sample(setting))
    text = shown(tables.quality(result.question, result.rows))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for name in ("linear", "softmax", "infinity", "majority"):
        assert any(line.strip().startswith(name) for line in text.splitlines())
    assert f"{seeds} of {seeds} run" in " ".join(text.split())
    assert "95 % interval" in text
    assert ("group" in text) == (seeds == 3)


def test_costs_leave_out_what_has_none():
    setting = comparison()
    result = findings(setting, sample(setting))
    text = shown(tables.costs(result.question, result.rows))
    assert "…" not in text
    assert "performer:features=64" in text
    assert "majority" not in text
    assert "dense" not in text


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_lengths_tell_exponent_crossover_and_form_of_each_mechanism(quantity):
    setting = comparison()
    curves = findings(setting, sample(setting)).cost_curves
    text = shown(*tables.lengths(curves, quantity))
    assert "…" not in text
    for label in (curve.label for curve in curves):
        assert label.partition(":")[0] in text
    assert text.count("exponent") == text.count("crossover") == 2  # more than four stand in a second table
    assert "causal" in text


def test_markup_in_a_name_is_shown_and_not_obeyed():
    setting = comparison([row("performer", name=HOSTILE), row("softmax")])
    result = findings(setting, sample(setting))
    text = shown(
        tables.quality(result.question, result.rows),
        tables.costs(result.question, result.rows),
        *tables.lengths(result.cost_curves, "forward_ms"),
        width=200,
    )
    assert text.count(HOSTILE) == 3


def test_twelve_rows_stand_in_80_columns_with_nothing_cut_off():
    setting = comparison(TWELVE)
    result = findings(setting, sample(setting))
    text = shown(tables.quality(result.question, result.rows))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("≈") == 4
    assert text.count("+14 %") == 2
    assert re.search(r"performer:features\w* .*\n *=128 ", text)


def test_two_lengths_have_no_exponent_and_the_table_says_why():
    setting = comparison()
    records = [record for record in sample(setting) if record["spec"].get("length") in (512, 1024)]
    text = " ".join(shown(*tables.lengths(findings(setting, records).cost_curves, "forward_ms")).split())
    assert "exponent needs" in text
    assert "three" in text


def test_json_terminal_and_page_say_the_same(capsys):
    setting = comparison()
    result = whole((setting, sample(setting)))
    show_comparison(result, Store(Path("runs")), Path("page.html"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    show_comparison(result, Store(Path("runs")), Path("page.html"), as_json=False)
    text, page = " ".join(capsys.readouterr().out.split()), render(result)
    assert document["answer"]["sentence"] in text
    for each in document["tasks"][0]["rows"]:
        if each["score"]:
            shown_score = f"{each['score']['mean']:.3f}"
            assert shown_score in text
            assert f"<b>{shown_score}</b>" in page
    for curve in document["costs"]:
        assert f"{curve['scaling']['forward_ms']['exponent']:.2f}" in page
    assert document["failed"] == len(document["failures"]) == len(result.failures)
