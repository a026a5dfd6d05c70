"""The page: one HTML file with everything in it, which asks the network for nothing.

Figures are SVG that stands in it, so that it can be read and printed without JavaScript; the one script
sorts, filters, hides and explains. A policy in the page allows this script, by its hash, and no other.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from subquad.files import write_whole
from subquad.records import Store, comparison_key
from subquad.report import formats, sections
from subquad.report.findings import Findings
from subquad.report.markup import Markup, element, join
from subquad.report.section import Section

VERDICTS = {
    "take": "The answer",
    "lead": "A lead, and no answer yet",
    "baseline": "The answer",
    "open": "No answer yet",
    "nothing": "No answer",
}


def write_page(findings: Findings, folder: Path) -> Path:
    """Write DIR/reports/<key>.html; its path.

    That of the latest comparison is written as DIR/report.html too. The same records give the same bytes.
    Runs that are missing or failed are shown as such.
    """
    store, key, page = Store(folder), comparison_key(findings.comparison), render(findings).encode()
    write_whole(store.page_path(key), page)
    if store.is_latest(key):
        write_whole(folder / "report.html", page)
    return store.page_path(key)


def render(findings: Findings) -> str:
    """The page's text."""
    shown = sections.contents(findings)
    main = element(
        "main", _answer(findings), _contents([section for section, _ in shown]), *map(_section, shown)
    )
    script = _file("page.js")
    return Template(_file("page.html")).substitute(
        policy=policy(script),
        title=join([findings.question.title]),
        style=_file("page.css"),
        body=join((_header(findings), main, _footer(findings))),
        script=script,
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


def _header(findings: Findings) -> Markup:
    """What was asked, in words and in numbers."""
    question, splits = findings.question, findings.question.splits
    stop = "" if question.text.endswith("?") else "."
    text = f"{question.text[:1].upper()}{question.text[1:]}{stop} " if question.text else ""
    text += (
        f"{formats.plural(len(question.entries), 'attention mechanism')} in the same model, trained alike on "
        f"sequences of at most {question.length:,} {question.units}, judged by {question.metric.label}"
    )
    if "test" in splits:
        text += f" on {splits['test'].examples:,} examples that no choice was made on"
    runs = len(findings.records)
    machines = [
        f"{machine.description.get('cpu')}, {machine.description.get('cores')} cores"
        for machine in findings.machines
    ]
    facts = {
        "Target": question.target,
        "Examples to train, validate, test": " · ".join(
            formats.count(split.examples) for split in splits.values()
        ),
        "Budget": f"{question.steps:,} steps of {question.step_examples:,}",
        "Seeds": formats.count(question.seeds),
        "Runs": f"{runs:,} of {runs + findings.missing:,}",
        "Machine": " | ".join(dict.fromkeys(machines)),
    }
    pairs = (element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items() if fact)
    return element(
        "header",
        element("p", f"subquad compare · {question.task}", class_="eyebrow"),
        element("h1", question.title),
        element("p", f"{text}.", class_="question"),
        element("dl", *pairs, class_="facts"),
    )


def _answer(findings: Findings) -> Markup:
    answer = findings.answer
    before, label, after = (
        answer.sentence.partition(answer.label) if answer.label else (answer.sentence, "", "")
    )
    box = element(
        "div",
        element("h2", VERDICTS[answer.verdict]),
        element("p", before, element("strong", label) if label else "", after, class_="sentence"),
        element("ul", *(element("li", reason) for reason in answer.reasons)) if answer.reasons else "",
        class_=f"answer {answer.verdict}",
    )
    return element("section", box, id="answer", tabindex=-1)


def _contents(shown: Sequence[Section]) -> Markup:
    links = (element("li", element("a", section.title, href=f"#{section.id}")) for section in shown)
    return element("nav", element("ul", *links), aria_label="Contents")


def _section(shown: tuple[Section, Markup]) -> Markup:
    section, content = shown
    title = f"{section.id}-title"
    heading = element("h2", section.title, id=title)
    return element("section", heading, content, id=section.id, aria_labelledby=title)


def _footer(findings: Findings) -> Markup:
    version = findings.versions.get("subquad")
    made = f"Made by subquad {version}" if version else "Made by subquad"
    records = formats.plural(len(findings.records), "record")
    return element("footer", f"{made} from {records}. This file is whole: it needs no network.")


def _file(name: str) -> str:
    return (files("subquad.report") / name).read_text("utf-8")
