"""A figure in the page: its legend, its panels, its table and its data."""

from subquad.report.figures import drawing
from subquad.report.figures.figure import Figure
from subquad.report.markup import Markup, element
from subquad.report.styles import grey_line
from subquad.report.table import download


def figure_html(figure: Figure) -> Markup:
    buttons = (
        element(
            "button",
            style.drawn(line=figure.line),
            element("span", label),
            type="button",
            aria_pressed="true",
            data_hides=label,
            disabled=True,  # page.js enables it
        )
        for label, style in figure.legend
    )
    reference = element("span", grey_line(), figure.reference, class_="reference")
    panels = (
        element(
            "div",
            element("h3", panel.title),
            element("div", drawing.panel_svg(panel), class_="plot", role="img", aria_label=panel.description),
        )
        for panel in figure.panels
    )
    return element(
        "figure",
        element("figcaption", figure.caption, id=f"{figure.name}-caption"),
        element(
            "div",
            *buttons,
            reference if figure.reference else "",
            class_="legend",
            role="group",
            aria_label="Show or hide a mechanism",
        ),
        element("div", *panels, class_="panels"),
        element("details", element("summary", "Table"), figure.table.html()),
        download(
            figure.data.csv(), name=f"{figure.name}.csv", kind="text/csv", words="Download the data (CSV)"
        ),
        aria_labelledby=f"{figure.name}-caption",
    )
