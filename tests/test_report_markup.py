import csv
import io
from base64 import b64decode
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subquad.report import formats
from subquad.report.markup import Markup, element, join
from subquad.report.table import Table, download

HOSTILE = """<img src=x onerror="alert(1)"> & '</script><script>alert(2)</script>"""


class Reader(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(alphabet=st.characters(blacklist_characters="\r\0", blacklist_categories=["Cs"])))
def test_whatever_enters_an_element_stays_text(text: str) -> None:
    read = Reader(element("p", text, title=text))
    assert read.text == text
    assert read.tags == [("p", {"title": text})]


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["<", Markup("<br>")], by="&") == "&lt;&amp;<br>"


def test_true_gives_a_bare_attribute_and_none_gives_none() -> None:
    assert element("a", hidden=True, title=None, open=False, aria_label="x", class_="y") == (
        '<a hidden aria-label="x" class="y"></a>'
    )


TABLE = Table(caption=HOSTILE, columns=("name", "value"), rows=((HOSTILE, 1234.5678), ("=cmd()", None)))


def test_a_table_escapes_its_cells_and_says_what_heads_what() -> None:
    read = Reader(TABLE.html())
    assert "img" not in {tag for tag, _ in read.tags}
    assert [attributes["scope"] for tag, attributes in read.tags if tag == "th"] == ["col"] * 2 + ["row"] * 2
    box = read.tags[0][1]
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", HOSTILE)


def test_a_table_hands_on_full_numbers_and_no_formula() -> None:
    name, value, formula, absent = [
        cell for row in list(csv.reader(io.StringIO(TABLE.csv())))[1:] for cell in row
    ]
    assert (name, float(value), absent) == (HOSTILE, 1234.5678, "")
    assert formula == "'=cmd()"


def test_a_download_is_held_in_the_page_whole() -> None:
    text = "ä,#,%\r\n" + HOSTILE
    link = Reader(download(text, name="a.csv", kind="text/csv", words="Save"))
    ((tag, attributes),) = link.tags
    href = attributes["href"]
    assert tag == "a"
    assert href is not None
    kind, _, held = href.partition(",")
    assert kind == "data:text/csv;charset=utf-8;base64"
    assert b64decode(held).decode() == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (41234.5, "41,200"),
        (4.126, "4.13"),
        (0.05817, "0.0582"),
        (999.7, "1,000"),
        (0.0, "0"),
        (-3.14159, "−3.14"),
        (1.234e-7, "1.23e-07"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, shown: str) -> None:
    assert formats.significant(value) == shown


def test_scores_ratios_and_durations_are_written_for_people() -> None:
    assert formats.score(0.69149) == "0.691"
    assert formats.mean_deviation(12.18, 0.399) == "12.18 ± 0.40"
    assert formats.mean_deviation(0.7, None) == "0.700"
    assert formats.signed(-0.0123) == "−0.012"
    assert formats.times(0.6249) == "0.62×"
    assert formats.percent(0.143) == "+14 %"
    assert formats.percent(-0.0301) == "−3.0 %"
    assert formats.percent(0.0001) == "0 %"
    assert [formats.duration(seconds) for seconds in (0.42, 12.4, 200, 7500)] == [
        "0.42 s",
        "12 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert formats.listed(["a", "b", "c"]) == "a, b and c"
    assert formats.plural(1, "run") == "1 run"
