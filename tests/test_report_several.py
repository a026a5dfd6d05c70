"""A page of several tasks: each has its sections under its name, and page, terminal and JSON say the same."""

import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_samples as made_up
from tasks_samples import REFUSAL, sample

from subquad.cli.output import show_comparison
from subquad.records import Store
from subquad.report.findings import ComparisonFindings
from subquad.report.page import render

SECTIONS = ("leaderboard", "quality", "parts", "learning")
THREE = ("transactions", "recall", "text")


@pytest.fixture(scope="module")
def findings() -> ComparisonFindings:
    return made_up.whole(*sample(*THREE, rows=made_up.TWELVE[:-1], refused={"text": "linear"}))


@pytest.fixture(scope="module")
def page(findings: ComparisonFindings) -> str:
    return render(findings)


def ids(page: str) -> list[str]:
    return re.findall(r' id="([^"]*)"', page)


def test_ids_are_unique_and_every_link_leads_somewhere(page: str) -> None:
    known = ids(page)
    assert len(known) == len(set(known))
    for attribute in ("href", "for", "aria-labelledby"):
        assert set(re.findall(rf'{attribute}="#?([a-z][\w-]*)"', page)) <= set(known), attribute


def test_the_sections_of_a_task_stand_together_under_its_name(page: str) -> None:
    order = re.findall(r'<section id="([^"]*)"', page)
    groups = [
        [name, *(f"{name}-{part}" for part in ("leaderboard", "quality", "parts", "learning"))]
        for name in THREE
    ]
    assert order == [
        *("answer", "overview"),
        *(each for group in groups for each in group),
        *("cost", "fairness", "failures", "configuration"),
    ]


def test_headings_skip_no_level(page: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert max(levels) == 4


def test_tasks_of_one_name_have_ids_of_their_own() -> None:
    (first, _), (second, _) = tasks = [*sample("recall"), *sample("text")]
    first["label"], second["label"] = "recall:pairs=4", "recall:pairs=8"  # pyright: ignore[reportIndexIssue]
    second["data"]["task"] = "recall"
    assert {"recall", "recall-leaderboard", "recall-2", "recall-2-leaderboard"} <= set(
        ids(render(made_up.whole(*tasks)))
    )


def test_what_a_mechanism_cannot_take_stands_in_its_row_everywhere(
    findings: ComparisonFindings, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    board = page.partition('<section id="text"')[2].partition("</table>")[0]
    assert re.search(rf"cannot take this task</span>[^\n]*{REFUSAL}", unescape(board))
    assert f"cannot: {REFUSAL}" in unescape(page.partition('class="overview"')[2].partition("</table>")[0])
    show_comparison(findings, Store(Path("runs")), Path("page.html"), as_json=False)
    assert f"cannot: {REFUSAL}" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_json_terminal_and_page_say_the_same(
    findings: ComparisonFindings, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_comparison(findings, Store(Path("runs")), Path("page.html"), as_json=True)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    show_comparison(findings, Store(Path("runs")), Path("page.html"), as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert [task["label"] for task in document["tasks"]] == list(THREE)
    for answer in (document["answer"], *(task["answer"] for task in document["tasks"])):
        assert answer["sentence"] in text
        assert answer["sentence"] in unescape(re.sub("<[^>]*>", "", page))
    assert document["overview"]["ranked"] == ["transactions", "recall"]
    for row in document["overview"]["rows"]:
        for place in row["places"]:
            assert place["score"] is None or f"{place['score']['mean']:.3f}" in text
        assert f"{row['average']:.3f}" in text
        assert f"{row['average']:.3f}" in page


def test_the_terminal_says_it_in_80_columns(
    findings: ComparisonFindings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_comparison(findings, Store(Path("runs")), Path("page.html"), as_json=False)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_failures_say_on_which_task(findings: ComparisonFindings) -> None:
    labels = {run.label for run in findings.failures}
    assert {"recall: reformer:hashes=4, seed 1", "text: reformer:hashes=4, seed 1"} <= labels


def test_names_of_tasks_that_try_to_be_markup_stay_text() -> None:
    tasks = sample("recall", "text")
    hostile = '"><script>alert(1)</script><h3 id="x">'
    for setting, _ in tasks:
        setting["label"] = setting["label"] + hostile  # pyright: ignore[reportIndexIssue]
    shown = render(made_up.whole(*tasks))
    assert "<script>alert" not in shown
    assert 'id="x"' not in shown
