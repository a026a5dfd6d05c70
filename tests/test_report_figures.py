import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_samples as made_up

import subquad.report
from subquad.report.figures import drawing
from subquad.report.figures.figure import Axis, Disc, Figure, Level, Line, Mark, Name, Sign, Whisker, ticks
from subquad.report.figures.names import WIDE, WIDTHS, Room, level_marks, short
from subquad.report.findings import Findings
from subquad.report.sections.cost import CROSS, RING, cost_by_length, interpolated, logarithmic_ticks
from subquad.report.sections.learning import learning_figure, running_mean
from subquad.report.sections.parts import parts_figure
from subquad.report.sections.quality import quality_against_speed
from subquad.report.styles import styles_of

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
def found() -> Findings:
    setting = made_up.comparison()
    return made_up.findings(setting, made_up.sample(setting))


@pytest.fixture(scope="module")
def drawn(found: Findings) -> dict[str, Figure]:
    return {name: figure for name, figure in figures(found).items() if figure}


def figures(result: Findings) -> dict[str, Figure | None]:
    return {
        "quality": quality_against_speed(result.rows, result.styles, result.question),
        "learning": learning_figure(result.learning, result.styles, result.question.metric.label),
        "parts": parts_figure(result.parts, result.styles, result.question.metric.label),
        "cost": cost_by_length(result.cost_curves, result.styles),
    }


def marks(figure: Figure) -> list[Mark]:
    return [mark for panel in figure.panels for mark in panel.marks]


def test_all_figures_are_drawn_and_their_marks_stand_on_their_axes(drawn: dict[str, Figure]) -> None:
    assert [len(figure.panels) for figure in drawn.values()] == [2, 2, 2, 3]
    for figure in drawn.values():
        for panel in figure.panels:
            for mark in panel.marks:
                points = (
                    mark.points if isinstance(mark, Line) else [] if isinstance(mark, Level) else [mark.at]
                )
                for x, y in points:
                    assert 0 <= panel.x.place(x) <= 1
                    assert 0 <= panel.y.place(y) <= 1
            for axis in (panel.x, panel.y):
                assert len(axis.ticks) >= 2
                assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_a_mechanism_has_one_look_in_all_figures(drawn: dict[str, Figure]) -> None:
    seen: dict[str, set[str]] = {}
    for figure in drawn.values():
        for mark in marks(figure):
            if isinstance(mark, Line | Sign | Disc | Whisker) and mark.row is not None:
                seen.setdefault(mark.row, set()).add(mark.colour)
    assert all(len(colours) == 1 for colours in seen.values())
    assert len(set.union(*seen.values())) == len(seen) == 6


def test_every_figure_has_words_a_table_and_all_its_data(found: Findings, drawn: dict[str, Figure]) -> None:
    baselines = {row.label for row in found.rows if row.kind == "baseline"}
    for figure in drawn.values():
        assert all(panel.description for panel in figure.panels)
        assert figure.table.rows
        assert set(figure.table.rows) <= set(figure.data.rows)
        named = {row[0] for row in figure.data.rows}
        assert named - baselines == {label for label, _ in figure.legend}


def test_every_point_of_a_curve_is_in_the_data_to_download(found: Findings, drawn: dict[str, Figure]) -> None:
    points = sum(len(record["result"].get("curve", [])) for record in found.records)
    assert len(drawn["learning"].data.rows) == points > len(drawn["learning"].table.rows)


def test_crossovers_are_ringed_and_failed_lengths_crossed(drawn: dict[str, Figure]) -> None:
    signs = [mark for mark in drawn["cost"].panels[0].marks if isinstance(mark, Sign)]
    rings = {mark.row: mark.at[0] for mark in signs if mark.path == RING}
    crosses = {(mark.row, mark.at[0]) for mark in signs if mark.path == CROSS}
    assert 512 < rings["linear"] < rings["performer:features=64"] < 8192
    assert crosses == {("dense", 4096), ("dense", 8192)}


def test_the_area_of_a_disc_is_the_memory(found: Findings, drawn: dict[str, Figure]) -> None:
    areas = {mark.row: mark.radius**2 for mark in marks(drawn["quality"]) if isinstance(mark, Disc)}
    memory = {row.label: row.costs.training_peak_mb for row in found.rows if row.costs}
    ratios = [area / (memory[label] or 0) for label, area in areas.items()]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_a_whisker_short_of_the_best_means_told_apart(found: Findings, drawn: dict[str, Figure]) -> None:
    best = found.rows[0]
    assert best.score
    whiskers = {mark.row: mark for mark in marks(drawn["quality"]) if isinstance(mark, Whisker)}
    assert whiskers.keys() == {row.label for row in found.rows if row.costs} - {best.label}
    short = {row for row, whisker in whiskers.items() if whisker.high < best.score.mean}
    assert "infinity" in short
    assert all(best.against[row].significant for row in short)


@pytest.mark.parametrize("rows", [made_up.ROWS, made_up.TWELVE])
def test_names_cover_neither_one_another_nor_a_marker(rows: Sequence[dict[str, Any]]) -> None:
    setting = made_up.comparison(rows)
    quality = figures(made_up.findings(setting, made_up.sample(setting)))["quality"]
    assert quality
    for panel in quality.panels:
        named = [mark for mark in panel.marks if isinstance(mark, Name)]
        signs = [mark for mark in panel.marks if isinstance(mark, Sign)]
        levels = [mark for mark in panel.marks if isinstance(mark, Level)]
        for width in WIDTHS:
            room = Room({}, [], [], panel.x, panel.y, width)
            boxes = [room.box(name) for name in named if width >= WIDE or not name.wide]
            assert not any(box.meets(room.marker(sign.at)) for box in boxes for sign in signs)
            boxes += map(room.level, levels)
            assert not any(a.meets(b) for a, b in combinations(boxes, 2))
        assert max(signs, key=lambda sign: sign.at[1]).row in {name.row for name in named}
        assert len(named) >= 5


@pytest.mark.parametrize(
    ("points", "right", "below"),
    [
        ([], False, False),
        ([(0.1, 0.55)], True, False),
        ([(0.1, 0.55), (0.9, 0.55)], False, True),
        ([(0.1, 0.55), (0.9, 0.55), (0.1, 0.45)], True, True),
    ],
)
def test_the_name_of_a_level_stands_where_no_point_is(
    points: list[tuple[float, float]], right: bool, below: bool
) -> None:
    x, y = (Axis(low=0, high=1, ticks=()) for _ in range(2))
    (level,) = level_marks({"baseline: majority": 0.5}, dict(zip("abc", points, strict=False)), x, y)
    assert (level.right, level.below) == (right, below)


def test_the_names_of_two_levels_do_not_meet() -> None:
    x, y = (Axis(low=0, high=1, ticks=()) for _ in range(2))
    first, second = level_marks({"baseline: last": 0.5, "baseline: majority": 0.51}, {}, x, y)
    room = Room({}, [], [], x, y, WIDE)
    assert not room.level(first).meets(room.level(second))


def test_names_leave_their_options_out_where_nothing_is_lost() -> None:
    found = short(["linear", "performer:features=64", "performer:features=128,seed=1", "infinity:basis=1"])
    assert list(found.values()) == ["linear", "performer:features=64", "performer:features=12…", "infinity"]


def test_without_results_there_is_no_figure() -> None:
    assert set(figures(made_up.findings(made_up.comparison(), [])).values()) == {None}


def test_a_drawing_fits_any_width_and_explains_its_marks(drawn: dict[str, Figure]) -> None:
    for figure in drawn.values():
        for panel in figure.panels:
            written = drawing.panel_svg(panel)
            assert written.count("<title>") == sum(
                isinstance(mark, Sign) or (isinstance(mark, Line) and bool(mark.words))
                for mark in panel.marks
            )
            assert not re.search(r"NaN|nan|inf%", written)
            for row in {mark.row for mark in panel.marks if not isinstance(mark, Level)} - {None}:
                assert f'data-row="{row}"' in written


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.6912, 0.7083), (0, 61_000), (3.2, 9.9), (-0.4, 0.3)])
def test_ticks_are_round_and_all_within(low: float, high: float) -> None:
    values, words = zip(*ticks(low, high), strict=True)
    assert 3 <= len(values) <= 7
    assert all(low <= value <= high for value in values)
    assert [float(word.replace(",", "")) for word in words] == pytest.approx(list(values))
    assert len({len(word.partition(".")[2]) for word in words}) == 1


def test_twenty_mechanisms_all_look_different() -> None:
    found = styles_of(["softmax", *map(str, range(20))])
    assert len({(style.colour, style.marker) for style in found.values()}) == 21
    assert next(iter(found)) == "softmax"
    assert found["softmax"].colour == "var(--row-0)"


def test_a_running_mean_keeps_the_mean_of_a_line_and_shortens_at_the_ends() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0, 5.0], 3) == [1.5, 2.0, 3.0, 4.0, 4.5]
    assert running_mean([3.0, 1.0], 1) == [3.0, 1.0]


def test_between_two_lengths_a_power_law_is_read_exactly() -> None:
    points = [(512, 512.0**1.5), (2048, 2048.0**1.5)]
    assert interpolated(points, 1000) == pytest.approx(1000**1.5)


def test_an_axis_of_many_powers_of_ten_has_only_them_as_ticks() -> None:
    assert logarithmic_ticks(0.9, 1100) == ((1, "1"), (10, "10"), (100, "100"), (1000, "1,000"))
    assert (20, "20") in logarithmic_ticks(8, 90)


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
