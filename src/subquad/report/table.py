"""A table of plain values: shown to people rounded, and handed to programs as it is."""

import csv
import io
from base64 import b64encode
from dataclasses import dataclass

from subquad.report import formats
from subquad.report.markup import Markup, element

Cell = str | int | float | None

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take a cell for a formula by


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column says what a row is about."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def html(self) -> Markup:
        """In a box of its own that scrolls sideways where the page is too narrow, also by keyboard."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        kinds = [None if any(isinstance(cell, str) for cell in cells) else "number" for cells in columns]
        head = (
            element("th", column, scope="col", class_=kind)
            for column, kind in zip(self.columns, kinds, strict=True)
        )
        body = (
            element(
                "tr",
                element("th", _shown(row[0]), scope="row"),
                *(
                    element("td", _shown(cell), class_=kind)
                    for cell, kind in zip(row[1:], kinds[1:], strict=True)
                ),
            )
            for row in self.rows
        )
        table = element(
            "table",
            element("caption", self.caption),
            element("thead", element("tr", *head)),
            element("tbody", *body),
        )
        return scrolling(table, label=self.caption)

    def csv(self) -> str:
        """Numbers in full; text that a spreadsheet would run as a formula is quoted with an apostrophe."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\r\n")
        writer.writerow(self.columns)
        writer.writerows([_inert(cell) for cell in row] for row in self.rows)
        return written.getvalue()


def scrolling(table: Markup, *, label: str) -> Markup:
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex=0)


def download(text: str, *, name: str, kind: str, words: str) -> Markup:
    """A link that saves text held in the page itself."""
    held = b64encode(text.encode()).decode()
    return element(
        "a", words, class_="download", href=f"data:{kind};charset=utf-8;base64,{held}", download=name
    )


def _shown(value: Cell) -> str:
    if isinstance(value, str):
        return value
    return formats.count(value) if isinstance(value, int) else formats.significant(value, digits=4)


def _inert(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
