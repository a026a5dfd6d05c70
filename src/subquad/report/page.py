"""The page: one HTML file with everything in it, which asks the network for nothing.

Figures are SVG that stands in it, so that it can be read and printed without JavaScript; the one script
sorts, filters, hides and explains. A policy in the page allows this script, by its hash, and no other.
"""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from string import Template

from subquad.files import write_whole
from subquad.records import Store, comparison_key
from subquad.report import evidence, sections
from subquad.report.figures.cost import cost_by_length
from subquad.report.figures.figure import Figure
from subquad.report.figures.learning import learning
from subquad.report.figures.quality import quality_against_speed
from subquad.report.findings import Findings, findings
from subquad.report.markup import element, join


def write(folder: Path, comparison: str | None = None) -> Path:
    """Write DIR/reports/<key>.html, the page of the comparison of that key, or of the latest; its path.

    That of the latest is written as DIR/report.html too. The same records give the same bytes. Runs that are
    missing or failed are shown as such. Raises `ValueError`, naming the file, where there is no comparison,
    or a file is damaged.
    """
    store, found = Store(folder), findings(folder, comparison)
    key, page = comparison_key(found.comparison), render(found).encode()
    write_whole(store.page_path(key), page)
    if store.is_latest(key):
        write_whole(folder / "report.html", page)
    return store.page_path(key)


def figures(found: Findings) -> dict[str, Figure | None]:
    """The figures by name; None where there is nothing to draw."""
    return {
        "quality": quality_against_speed(found.rows, found.looks, found.comparison),
        "learning": learning(found.comparison, found.records, found.looks),
        "cost": cost_by_length(found.curves, found.looks),
    }


def render(found: Findings) -> str:
    """The page's text."""
    shown = figures(found)
    content = {
        "leaderboard": ("Leaderboard", *sections.leaderboard(found)),
        "quality": ("Quality against speed", sections.drawn(shown["quality"])),
        "learning": ("Learning curves", sections.drawn(shown["learning"])),
        "cost": ("Cost by length", sections.drawn(shown["cost"]), sections.scaling(found.curves)),
        "fairness": ("Fairness", *evidence.fairness(found)),
        "failures": ("Failures", *evidence.failures(found)),
        "configuration": ("Configuration and machine", *evidence.configuration(found)),
        "literature": ("Literature", *evidence.literature()),
    }
    if not found.comparison["keys"]["bench"]:  # it was left out
        content.pop("cost")
    main = element(
        "main",
        sections.answer(found),
        sections.contents({name: title for name, (title, *_) in content.items()}),
        *(sections.section(name, *parts) for name, parts in content.items()),
    )
    own = _part("page.js")
    return Template(_part("page.html")).substitute(
        policy=policy(own),
        title=join([str(found.comparison["title"])]),
        style=_part("page.css"),
        body=join((sections.header(found), main, evidence.footer(found))),
        script=own,
    )


def policy(script: str) -> str:
    """What the page may do: run this script, style itself, and reach nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",  # a style sheet, and colours of single marks
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _part(name: str) -> str:
    return (files("subquad.report") / name).read_text("utf-8")
