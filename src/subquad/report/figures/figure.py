"""What a figure is: what Plotly draws, what is said of it to those who do not see it, the table behind it.

Colours are variables of the style sheet; page.js puts in their values, for light, dark and print. Plotly
takes some HTML in text for markup, so that every text from outside is escaped here once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from subquad.report.looks import Look
from subquad.report.table import Table

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes."""

    title: str
    description: str  # in words, for those who do not see it
    data: list[Json]
    layout: Json


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str  # of its place in the page and of its file
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Look], ...]
    line: bool  # whether the legend shows lines
    reference: str = ""  # what the grey line is, if there is one
    table: Table  # what is drawn, for people
    data: Table  # the same and all there is, to download


def axes(*, x: str) -> Json:
    """A layout without ornament. `x` says what goes to the right, the panel's title above it what goes up."""
    axis = {
        "gridcolor": "var(--rule)",
        "linecolor": "var(--rule)",
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "fixedrange": True,
        "tickfont": {"color": "var(--muted)", "size": 12},
    }
    title = {"text": plain(x), "font": {"color": "var(--muted)", "size": 12.5}, "standoff": 10}
    return {
        "xaxis": {**axis, "showgrid": False, "showline": True, "title": title},
        "yaxis": axis.copy(),
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)"},
        "hoverlabel": {
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--ink)", "size": 13},
            "align": "left",
        },
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": False,
    }


def line(
    label: str,
    look: Look,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    what: str,
    thin: bool = False,
    marks: bool = False,
) -> Json:
    """A mechanism's line in its look; a thin one is background, and says nothing when pointed at."""
    hover = {"hoverinfo": "skip"} if thin else {"hovertemplate": "%{text}<br>%{x:,}: %{y:.4g}<extra></extra>"}
    return {
        "type": "scatter",
        "mode": "lines+markers" if marks else "lines",
        "name": plain(label),
        "meta": label,  # the legend's button hides by it
        "x": list(xs),
        "y": list(ys),
        "text": [f"{plain(label)}, {what}"] * len(xs),
        **hover,
        "opacity": 0.3 if thin else 1,
        "line": {"color": look.colour, "width": 1 if thin else 2.25, "dash": "solid" if thin else look.dash},
        "marker": {"color": look.colour, "symbol": look.marker, "size": 8},
    }


def plain(text: str) -> str:
    """Text in which Plotly finds no tags, and no variables of a template."""
    return escape(text, quote=False).replace("%{", "%\u200b{")
