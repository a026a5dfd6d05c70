"""The sections of the page: whoever adds one adds one file, and none is empty."""

import re
from pathlib import Path
from typing import Any

import pytest
import report_samples as made_up

from subquad import report
from subquad.report import ComparisonFindings
from subquad.report.page import render

SECTION = """
from subquad.report import Section, element


def content(findings):
    best = findings.rows[0]
    return element("p", f"{best.label} <b> leads by {findings.question.metric.label}")


SECTION = Section(id="by-depth", title="Accuracy by depth", of=content, task=%r)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a package of one file, whose SECTION is registered."""

    def install(source: str, name: str = "outside_section") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        installed = tmp_path / f"{name}-1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (installed / "entry_points.txt").write_text(f"[subquad.sections]\n{name} = {name}:SECTION\n")
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def findings(**other: Any) -> ComparisonFindings:
    setting = made_up.comparison(**other)
    return made_up.whole((setting, made_up.sample(setting)))


def titles(result: ComparisonFindings) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", render(result))


@pytest.mark.parametrize("task", [None, "transactions"])
def test_a_section_of_another_package_stands_before_the_evidence(outside: Any, task: str | None) -> None:
    outside(SECTION % task)
    page = render(findings())
    order = re.findall(r'<section id="([^"]*)"', page)
    assert order.index("cost") + 1 == order.index("by-depth") == order.index("fairness") - 1
    assert "<p>linear &lt;b&gt; leads by AUC</p>" in page
    assert '<a href="#by-depth">Accuracy by depth</a>' in page


def test_a_section_of_one_task_is_not_shown_for_another(outside: Any) -> None:
    outside(SECTION % "listops")
    assert "Accuracy by depth" not in render(findings())
    assert "Accuracy by depth" in render(findings(task="listops"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("SECTION = 1", "is not a subquad.report.Section"),
        ("import no_such_module", "no_such_module"),
        ((SECTION % None).replace("by-depth", "leaderboard"), "id 'leaderboard' is taken"),
        ((SECTION % None).replace("rows[0]", "rows[99]"), "index out of range"),
    ],
)
def test_a_section_that_fails_warns_and_the_page_is_without_it(
    outside: Any, source: str, reason: str
) -> None:
    expected = titles(findings())
    outside(source)
    with pytest.warns(UserWarning, match=f"left out: .*{reason}"):
        assert titles(findings()) == expected


def test_no_section_is_empty() -> None:
    setting = made_up.comparison(made_up.ROWS[:2])
    fits = [record for record in made_up.sample(setting) if record["kind"] == "fit"]
    without_bench = made_up.whole((setting, fits))
    assert titles(without_bench) == [
        *("The answer", "Leaderboard", "Quality against speed", "By parts", "Learning curves"),
        *("Fairness", "Configuration and machine"),
    ]
    nothing = made_up.whole((setting, []))
    assert titles(nothing) == ["No answer", "Leaderboard", "Configuration and machine"]


def test_the_unit_of_a_task_is_said_wherever_one_is() -> None:
    summary = {name: value for name, value in made_up.SUMMARY.items() if name != "events"}
    page = render(findings(unit="byte", summary=summary))
    for text in ("at most 512 bytes", "bytes/s", "bytes per second", "At 512 bytes it", "length, bytes"):
        assert text in page
    assert "event" not in re.sub(r"addEventListener|pointer-events|data:[^\"]*", "", page)


def test_published_results_are_a_layer_with_sources_and_no_rows(tmp_path: Path) -> None:
    setting = made_up.comparison(task="listops", metric="accuracy")
    path = report.write(made_up.write(tmp_path, setting, made_up.sample(setting)))
    before, _, literature = path.read_text("utf-8").partition('<section id="literature"')
    assert "arXiv:2011.04006, table 1" in literature
    assert "36.37" in literature
    assert "Sinkhorn" not in before
    assert "×" not in literature.partition("<script>")[0]


@pytest.mark.parametrize(("task", "metric"), [("transactions", "accuracy"), ("listops", "mae")])
def test_without_published_results_there_is_no_literature(task: str, metric: str) -> None:
    assert "Literature" not in titles(findings(task=task, metric=metric))


def test_every_colour_that_the_page_uses_is_defined() -> None:
    page = render(findings())
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page))


def test_the_page_names_the_code_of_other_packages_and_only_where_there_is_some() -> None:
    theirs = {"kind": "mechanism", "name": "mine", "package": "someones-<b>", "version": "1.2"}
    page = render(findings(plugins=[theirs]))
    assert "Plug-ins" in page
    assert "someones-&lt;b&gt;</td>" in page
    assert "Plug-ins" not in render(findings())
