"""One colour, marker and dash for each mechanism, the same in every figure and table.

Colours are names of the style sheet's variables: it has a set for light and one for dark pages, each
chosen so that neighbours stay apart for the colour-blind. Marker and dash say the same without colour.
Plain softmax, which all is compared with, has the colour of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from subquad.report.leaderboard import REFERENCE
from subquad.report.markup import Markup, element

HUES = 7  # --row-1 … --row-7 of page.css; --row-0 is softmax
MARKERS = (  # paths about the origin
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4H4V4H-4z",
    "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "M0-5L5 4H-5z",
    "M0 5L5-4H-5z",
    "M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8z",
    "M0-5L4.8-1.5L2.9 4H-2.9L-4.8-1.5z",
    "M0-5.5L1.6-1.8L5.2-1.7L2.4 .8L3.2 4.6L0 2.6L-3.2 4.6L-2.4 .8L-5.2-1.7L-1.6-1.8z",
)
DASHES = (  # as SVG has them
    "",
    "6 3",
    "6 2 1.5 2",
    "9 3",
    "1.5 2.5",
    "9 2 1.5 2",
)


@dataclass(frozen=True, kw_only=True)
class Style:
    colour: str  # a variable of page.css
    place: int  # which marker and dash

    @property
    def marker(self) -> str:
        return MARKERS[self.place % len(MARKERS)]

    @property
    def dash(self) -> str:
        return DASHES[self.place % len(DASHES)]

    def drawn(self, *, line: bool) -> Markup:
        """Its marker, on its line if asked, as a picture beside the name."""
        width = 30 if line else 14
        stroke = element(
            "line",
            x1=-width / 2 + 1,
            x2=width / 2 - 1,
            stroke=self.colour,
            stroke_width=2,
            stroke_dasharray=self.dash or None,
        )
        return element(
            "svg",
            stroke if line else "",
            element("path", d=self.marker, fill=self.colour),
            class_="swatch",
            viewBox=f"{-width / 2} -7 {width} 14",
            width=width,
            height=14,
            aria_hidden="true",
        )


def grey_line() -> Markup:
    """What fused softmax styles like, which no marker stands on."""
    line = element("line", x1=-14, x2=14, stroke="var(--grey)", stroke_width=6, stroke_opacity=0.45)
    return element(
        "svg", line, class_="swatch", viewBox="-15 -7 30 14", width=30, height=14, aria_hidden="true"
    )


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """The style of each mechanism, by its place among those asked for."""
    others = [label for label in labels if label != REFERENCE]
    return {
        label: Style(colour="var(--row-0)", place=0)
        if label == REFERENCE
        else Style(colour=f"var(--row-{others.index(label) % HUES + 1})", place=others.index(label) + 1)
        for label in labels
    }
