"""The page: one HTML file with everything in it, which asks the network for nothing.

Figures are SVG that stands in it, so that it can be read and printed without JavaScript; the one script
sorts, filters, hides and explains. A policy in the page allows this script, by its hash, and no other.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from subquad.files import write_whole
from subquad.records import Store, comparison_key
from subquad.report import formats, sections
from subquad.report.answer import Answer
from subquad.report.findings import ComparisonFindings
from subquad.report.markup import Markup, element, join
from subquad.report.question import Question
from subquad.report.sections import Shown, TaskSections

VERDICTS = {
    "take": "The answer",
    "lead": "A lead, and no answer yet",
    "baseline": "The answer",
    "open": "No answer yet",
    "nothing": "No answer",
}


def write_page(findings: ComparisonFindings, folder: Path) -> Path:
    """Write DIR/reports/<key>.html; its path.

    That of the latest comparison is written as DIR/report.html too. The same records give the same bytes.
    Runs that are missing or failed are shown as such.
    """
    store, key, page = Store(folder), comparison_key(findings.comparison), render(findings).encode()
    write_whole(store.page_path(key), page)
    if store.is_latest(key):
        write_whole(folder / "report.html", page)
    return store.page_path(key)


def render(findings: ComparisonFindings) -> str:
    """The page's text."""
    shown = sections.contents(findings)
    heading = VERDICTS[findings.answer.verdict] if len(findings.tasks) == 1 else "The answer by task"
    answer = element("section", _answer(findings.answer, "h2", heading), id="answer", tabindex=-1)
    main = element("main", answer, contents_of(shown), *map(_part, shown))
    return page_html(findings.title, join((_header(findings), main, _footer(findings))))


def page_html(title: str, body: Markup) -> str:
    """The text of a page with a style, a script and a policy of its own."""
    script = _file("page.js")
    return Template(_file("page.html")).substitute(
        policy=policy(script), title=join([title]), style=_file("page.css"), body=body, script=script
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


def _header(findings: ComparisonFindings) -> Markup:
    """What was asked, in words and in numbers."""
    tasks = [task.question for task in findings.tasks]
    first = tasks[0]  # what the tasks share stands in each
    mechanisms = formats.plural(len(findings.comparison["attention"]), "attention mechanism")
    if len(tasks) == 1:
        text, about = _question(first, f"{mechanisms} in the same model"), _facts_of_data(first)
    else:
        text = f"{mechanisms} in the same model, on each of {len(tasks)} tasks trained alike."
        about = {"Tasks": formats.count(len(tasks))}
    runs = len(findings.records)
    machines = [
        f"{machine.description.get('cpu')}, {machine.description.get('cores')} cores"
        for machine in findings.machines
    ]
    facts = {
        **about,
        "Budget": f"{first.steps:,} steps of {first.step_examples:,}",
        "Seeds": formats.count(first.seeds),
        "Runs": f"{runs:,} of {runs + findings.missing:,}",
        "Machine": " | ".join(dict.fromkeys(machines)),
    }
    return element(
        "header",
        element("p", f"subquad compare · {formats.listed([each.task for each in tasks])}", class_="eyebrow"),
        element("h1", findings.title),
        element("p", text, class_="question"),
        facts_list(facts),
    )


def _question(question: Question, who: str) -> str:
    """What is asked on a task, of whom, and how it is judged."""
    stop = "" if question.text.endswith("?") else "."
    text = f"{question.text[:1].upper()}{question.text[1:]}{stop} " if question.text else ""
    text += (
        f"{who}, trained alike on sequences of at most {question.length:,} {question.units}, judged by "
        f"{question.metric.label}"
    )
    if "test" in question.splits:
        text += f" on {question.splits['test'].examples:,} examples that no choice was made on"
    return f"{text}."


def _facts_of_data(question: Question) -> dict[str, str]:
    sizes = " · ".join(formats.count(split.examples) for split in question.splits.values())
    return {"Target": question.target, "Examples to train, validate, test": sizes}


def facts_list(facts: Mapping[str, str]) -> Markup:
    pairs = (element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items() if fact)
    return element("dl", *pairs, class_="facts")


def _answer(answer: Answer, level: str, heading: str) -> Markup:
    before, label, after = (
        answer.sentence.partition(answer.label) if answer.label else (answer.sentence, "", "")
    )
    return element(
        "div",
        element(level, heading),
        element("p", before, element("strong", label) if label else "", after, class_="sentence"),
        element("ul", *(element("li", reason) for reason in answer.reasons)) if answer.reasons else "",
        class_=f"answer {answer.verdict}",
    )


def contents_of(shown: Sequence[Shown | TaskSections]) -> Markup:
    links = (
        _link(part.id, part.title)
        if isinstance(part, Shown)
        else element(
            "li",
            element("a", part.findings.question.label, href=f"#{part.id}"),
            element("ul", *(_link(each.id, each.title) for each in part.sections)),
            class_="task",
        )
        for part in shown
    )
    return element("nav", element("ul", *links), aria_label="Contents")


def _link(to: str, title: str) -> Markup:
    return element("li", element("a", title, href=f"#{to}"))


def _part(part: Shown | TaskSections) -> Markup:
    return section_html(part) if isinstance(part, Shown) else _task(part)


def _task(part: TaskSections) -> Markup:
    """All about one task of several: its question, its answer and its sections."""
    question, answer = part.findings.question, part.findings.answer
    who = formats.plural(len(question.entries), "mechanism")
    return element(
        "section",
        element("h2", question.title, id=f"{part.id}-title"),
        element("p", _question(question, who), class_="question"),
        facts_list(_facts_of_data(question)),
        _answer(answer, "h3", VERDICTS[answer.verdict]),
        *(section_html(each, level="h3") for each in part.sections),
        id=part.id,
        class_="task",
        aria_labelledby=f"{part.id}-title",
    )


def section_html(shown: Shown, *, level: str = "h2") -> Markup:
    title = f"{shown.id}-title"
    heading = element(level, shown.title, id=title)
    return element("section", heading, shown.content, id=shown.id, aria_labelledby=title)


def _footer(findings: ComparisonFindings) -> Markup:
    version = findings.versions.get("subquad")
    made = f"Made by subquad {version}" if version else "Made by subquad"
    records = formats.plural(len(findings.records), "record")
    return element("footer", f"{made} from {records}. This file is whole: it needs no network.")


def _file(name: str) -> str:
    return (files("subquad.report") / name).read_text("utf-8")
