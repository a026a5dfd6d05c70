import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_samples as made_up

import subquad.report
from subquad.report.answer import answer
from subquad.report.figures.cost import interpolated, logarithmic_ticks
from subquad.report.figures.figure import Figure, plain
from subquad.report.figures.learning import running_mean
from subquad.report.findings import Findings, findings
from subquad.report.looks import looks
from subquad.report.page import figures

STYLE = (Path(subquad.report.__file__).parent / "page.css").read_text("utf-8")

# Machado, Oliveira and Fernandes (2009), table 1, severity 1: what the colour-blind see of linear RGB
SIGHT = {
    "all cones": np.eye(3),
    "no red ones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green ones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue ones": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    setting = made_up.comparison()
    return findings(made_up.write(tmp_path_factory.mktemp("runs"), setting, made_up.sample(setting)))


@pytest.fixture(scope="module")
def drawn(found: Findings) -> dict[str, Figure]:
    return {name: figure for name, figure in figures(found).items() if figure}


def traces(figure: Figure) -> list[dict[str, Any]]:
    return [trace for panel in figure.panels for trace in panel.data]


def test_all_three_figures_are_drawn_and_plotly_knows_every_word_of_them(drawn: dict[str, Figure]) -> None:
    from plotly.graph_objects import Figure as PlotlyFigure

    assert [len(figure.panels) for figure in drawn.values()] == [2, 2, 3]
    for figure in drawn.values():
        for panel in figure.panels:
            written = json.dumps({"data": panel.data, "layout": panel.layout})
            PlotlyFigure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "red", written)))


def test_a_mechanism_has_one_look_in_all_figures(drawn: dict[str, Figure]) -> None:
    seen: dict[str, set[str]] = {}
    for figure in drawn.values():
        for trace in traces(figure):
            if trace["meta"] is not None:
                seen.setdefault(trace["meta"], set()).add(trace["marker"]["color"])
    assert all(len(colours) == 1 for colours in seen.values())
    assert len(set.union(*seen.values())) == len(seen) == 6


def test_every_figure_has_words_a_table_and_all_its_data(drawn: dict[str, Figure]) -> None:
    for figure in drawn.values():
        assert all(panel.description for panel in figure.panels)
        assert figure.table.rows
        assert set(figure.table.rows) <= set(figure.data.rows)
        named = {row[0] for row in figure.data.rows}
        assert named == {label for label, _ in figure.legend}


def test_every_point_of_a_curve_is_in_the_data_to_download(found: Findings, drawn: dict[str, Figure]) -> None:
    points = sum(len(record["result"].get("curve", [])) for record in found.records)
    assert len(drawn["learning"].data.rows) == points > len(drawn["learning"].table.rows)


def test_crossovers_are_ringed_and_failed_lengths_crossed(drawn: dict[str, Figure]) -> None:
    forward = drawn["cost"].panels[0].data
    rings = {
        trace["meta"]: trace["x"][0] for trace in forward if trace["marker"].get("symbol") == "circle-open"
    }
    crosses = {
        (trace["meta"], trace["x"][0]) for trace in forward if trace["marker"].get("symbol") == "x-thin"
    }
    assert 512 < rings["linear"] < rings["performer:features=64"] < 8192
    assert crosses == {("dense", 4096), ("dense", 8192)}


def test_the_area_of_a_disc_is_the_memory(found: Findings, drawn: dict[str, Figure]) -> None:
    discs = [trace for trace in drawn["quality"].panels[0].data if "opacity" in trace["marker"]]
    areas = {disc["meta"]: disc["marker"]["size"] ** 2 for disc in discs}
    memory = {row.label: row.costs.training_peak_mb for row in found.rows if row.costs}
    ratios = [area / (memory[label] or 0) for label, area in areas.items()]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_without_results_there_is_no_figure() -> None:
    setting = made_up.comparison()
    empty = Findings(
        comparison=setting,
        records=[],
        missing=1,
        rows=subquad.report.leaderboard(setting, []),
        curves=[],
        answer=answer(setting, [], []),
        looks=looks([row["label"] for row in setting["rows"]]),
    )
    assert set(figures(empty).values()) == {None}


def test_plotly_finds_neither_tags_nor_variables_in_a_name() -> None:
    assert plain("<b>%{x}</b> & <a href='javascript:x'>") == (
        "&lt;b&gt;%\u200b{x}&lt;/b&gt; &amp; &lt;a href='javascript:x'&gt;"
    )


def test_twenty_mechanisms_all_look_different() -> None:
    found = looks(["softmax", *map(str, range(20))])
    assert len({(look.colour, look.marker) for look in found.values()}) == 21
    assert next(iter(found)) == "softmax"
    assert found["softmax"].colour == "var(--row-0)"


def test_a_running_mean_keeps_the_mean_of_a_line_and_shortens_at_the_ends() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0, 5.0], 3) == [1.5, 2.0, 3.0, 4.0, 4.5]
    assert running_mean([3.0, 1.0], 1) == [3.0, 1.0]


def test_between_two_lengths_a_power_law_is_read_exactly() -> None:
    points = [(512, 512.0**1.5), (2048, 2048.0**1.5)]
    assert interpolated(points, 1000) == pytest.approx(1000**1.5)


def test_an_axis_of_many_powers_of_ten_has_only_them_as_ticks() -> None:
    assert logarithmic_ticks(0.9, 1100) == [0.1, 1, 10, 100, 1000, 10000]
    assert 20 in logarithmic_ticks(8, 90)


@pytest.mark.parametrize("page", ["light", "dark"])
@pytest.mark.parametrize("sight", list(SIGHT))
def test_the_first_five_colours_stay_apart_for_every_sight(page: str, sight: str) -> None:
    background, *colours = palette(page)
    seen = [lab(np.clip(SIGHT[sight] @ linear(colour), 0, 1)) for colour in colours[:5]]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 14
    assert min(contrast(colour, background) for colour in colours) > 3  # WCAG 2.2, 1.4.11


def palette(page: str) -> list[str]:
    block = STYLE.split("@media", maxsplit=2)[0 if page == "light" else 1]
    return [
        re.findall(rf"--{name}: (#\w+)", block)[0]
        for name in ("page", *(f"row-{place}" for place in range(8)))
    ]


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, in which distances are about what the eye sees."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ rgb / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(first: str, second: str) -> float:
    low, high = sorted(
        float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour)) for colour in (first, second)
    )
    return (high + 0.05) / (low + 0.05)
