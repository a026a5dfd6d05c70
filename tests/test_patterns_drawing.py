"""Drawings show every pair, no other, and as much as they say."""

import re
import unicodedata
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from subquad.patterns import CAUSAL, Columns, Dilated, Fixed, Global, Local, PerHead, Random, Strided
from subquad.patterns.drawing import SHADES, Drawing, Panel, coverage, drawn, levels
from subquad.patterns.svg import rectangles, svg

SVG = "{http://www.w3.org/2000/svg}"
DOTS = {
    "1": (0, 0),
    "2": (1, 0),
    "3": (2, 0),
    "7": (3, 0),
    "4": (0, 1),
    "5": (1, 1),
    "6": (2, 1),
    "8": (3, 1),
}
HOSTILE = "</title><script>alert(1)</script> & \"Local(1)'"


@st.composite
def masks(draw, most=20):
    n = draw(st.integers(1, most))
    bits = draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))
    return torch.tensor(bits).reshape(n, n)


def read_halves(lines):
    """The pairs that half blocks show, by what Unicode calls them."""
    marks = {" ": "", "▀": "upper", "▄": "lower", "█": "upper lower"}
    for y, line in enumerate(lines):
        for x, sign in enumerate(line):
            yield from ((2 * y + (half == "lower"), x) for half in marks[sign].split())


def read_braille(lines):
    for y, line in enumerate(lines):
        for x, sign in enumerate(line):
            if sign != " ":
                dots = unicodedata.name(sign).removeprefix("BRAILLE PATTERN DOTS-")
                yield from ((4 * y + DOTS[dot][0], 2 * x + DOTS[dot][1]) for dot in dots)


@settings(max_examples=40, deadline=None)
@given(masks())
def test_where_there_is_room_every_pair_is_shown_and_no_other(mask):
    pairs = {(i, j) for i, j in mask.nonzero().tolist()}
    assert set(read_halves(drawn(mask, columns=20, lines=10))) == pairs
    n = len(mask)
    smaller = drawn(mask, columns=-(-n // 2), lines=-(-n // 4))
    if n > 1:  # one pair always has room
        assert set(read_braille(smaller)) == pairs


@pytest.mark.parametrize("length", [1, 7, 40, 41, 64, 81, 300])
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 24), (30, 200)])
def test_a_drawing_keeps_within_its_terminal(length, columns, lines):
    told = Drawing.of(Local(3) & CAUSAL, length).text(columns=columns, lines=lines).splitlines()
    framed = [line for line in told if line[0] in "│┌└"]
    assert max(map(len, framed)) <= columns
    assert len(framed) + 3 <= lines


@pytest.mark.parametrize("length", [300, 1000])
def test_a_cell_is_blank_where_nothing_is_covered_and_solid_where_all_is(length):
    mask = Fixed(100, 40).mask(length)
    mask[-1, 0] = True
    lines = drawn(mask, columns=50, lines=25)
    rows = mask.tensor_split(len(lines))
    for line, row in zip(lines, rows, strict=True):
        for sign, cell in zip(line, row.tensor_split(len(line), dim=1), strict=True):
            assert (sign == " ") == (not cell.any())
            assert (sign == "█") == bool(cell.all())
            assert (sign == "░") == bool(0 < cell.double().mean() < 1 / 64)


@settings(max_examples=40, deadline=None)
@given(masks(), st.integers(1, 5), st.integers(1, 5))
def test_coverage_is_the_share_of_each_cell(mask, rows, columns):
    covered = coverage(mask, rows=min(rows, len(mask)), columns=min(columns, len(mask)))
    for row, band in zip(covered, mask.tensor_split(len(covered)), strict=True):
        shares = [cell.double().mean() for cell in band.tensor_split(len(row), dim=1)]
        assert_close(row, torch.stack(shares))


def test_levels_have_wide_steps():
    covered = torch.tensor([[0, 1e-9, 0.015, 1 / 64, 0.12, 1 / 8, 0.999, 1]], dtype=torch.float64)
    assert levels(covered).tolist() == [[0, 1, 1, 2, 2, 3, 3, 4]]
    assert len(SHADES) == 5


def test_the_counts_are_shown():
    drawing = Drawing.of(Local(0) | Columns(1), 4)
    assert drawing.text(columns=80, lines=24).splitlines()[-1] == (
        "7 of 4² = 16 pairs, density 43.8 %; a query sees 1 to 2 keys, mean 1.8"
    )
    told = drawing.to_json()
    assert (told["expression"], told["length"], told["pairs"], told["density"]) == (
        repr(Local(0) | Columns(1)),
        4,
        7,
        0.4375,
    )
    assert told["heads"][0]["keys_per_query"] == {"least": 1, "mean": 1.75, "most": 2}


def test_each_head_has_a_drawing_and_counts_of_its_own():
    drawing = Drawing.of(PerHead(Local(1), CAUSAL, Global(1)), 8)
    assert [panel.pairs for panel in drawing.panels] == [22, 36, 15]
    assert (drawing.to_json()["pairs"], drawing.to_json()["density"]) == (73, 73 / (3 * 64))
    text = drawing.text(columns=80, lines=24)
    for title in ("head 0: Local(1)", "head 1: CAUSAL", "head 2: Global(1)"):
        assert f"{title}: " in text
    assert text.count("┌") == 3
    picture = ElementTree.fromstring(svg(drawing))
    assert [text.text for text in picture.iter(f"{SVG}text")].count("queries") == 3


@pytest.mark.parametrize("length", [0, -1, 4097])
def test_a_length_that_cannot_be_drawn_is_refused(length):
    with pytest.raises(ValueError, match="takes a length from 1 to 4,096"):
        Drawing.of(Local(1), length)


def test_the_masks_of_many_heads_stay_within_memory():
    with pytest.raises(ValueError, match="takes a length from 1 to 819"):
        Drawing.of(PerHead(*[Local(1)] * 25), 820)


@settings(max_examples=40, deadline=None)
@given(masks(12))
def test_rectangles_hold_every_cell_once_and_no_other(mask):
    painted = torch.zeros_like(mask, dtype=torch.long)
    for x, y, width, height in rectangles(mask.long() * 3, 3):
        painted[y : y + height, x : x + width] += 1
    assert painted.tolist() == mask.long().tolist()


@pytest.mark.parametrize("length", [1, 24, 64, 500])
def test_the_picture_is_whole_in_itself_named_and_described(length):
    text = svg(Drawing.of(Local(3) | Strided(8) | Random(1), length))
    picture = ElementTree.fromstring(text)
    named = picture.attrib["aria-labelledby"].split()
    assert [part.tag for part in picture if part.get("id") in named] == [f"{SVG}title", f"{SVG}desc"]
    assert "pairs, density" in picture.findtext(f"{SVG}desc", "")
    assert {"queries", "keys", "0"} <= {each.text for each in picture.iter(f"{SVG}text")}
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href|url\(|@import|<script", text)
    assert re.findall(r"https?:[^\"]*", text) == ["http://www.w3.org/2000/svg"]


def test_the_picture_shows_every_pair_and_no_other():
    pattern = Local(2) | Random(2) | Dilated(2, 9)
    (path,) = ElementTree.fromstring(svg(Drawing.of(pattern, 40))).iter(f"{SVG}path")
    found = torch.zeros(40, 40, dtype=torch.bool)
    for x, y, width, height in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\3z", path.attrib["d"]):
        found[int(y) : int(y) + int(height), int(x) : int(x) + int(width)] = True
    assert found.tolist() == pattern.mask(40).tolist()


def test_the_picture_of_blocks_stays_small():
    assert len(svg(Drawing.of(Fixed(64, 8) | Global(32), 2048))) < 8_000


def test_a_text_from_outside_stays_text():
    mask = Local(1).mask(4)
    drawing = Drawing(expression=HOSTILE, length=4, panels=[Panel(title=HOSTILE, mask=mask)] * 2)
    picture = ElementTree.fromstring(svg(drawing))
    assert picture.findtext(f"{SVG}title") == f"Attention pattern {HOSTILE}"
    assert not [*picture.iter(f"{SVG}script")]
