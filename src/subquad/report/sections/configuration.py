"""All it takes to judge where the figures come from, and to make them again."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from subquad.records import Record, comparison_key
from subquad.report import formats
from subquad.report.findings import ComparisonFindings, Findings
from subquad.report.markup import Markup, element, join
from subquad.report.section import SharedSection
from subquad.report.table import Table, download

LABELS = {"memory_gb": "memory, GB", "os": "system", "dim": "width"}


def configuration_content(findings: ComparisonFindings) -> Markup:
    comparison = findings.comparison
    machines = (
        join(
            (
                element("h3", "Machine"),
                pairs_html({"runs": formats.count(machine.runs), **labelled(machine.description)}),
            )
        )
        for machine in findings.machines
    )
    return join(
        (
            element("h3", "To do it again"),
            element("pre", element("code", command(comparison)), tabindex=0, aria_label="Command"),
            element(
                "p",
                "Add ",
                element("code", "--out DIR"),
                " for a folder of your own; what is in it already is not done again. ",
                element("code", f"subquad report DIR {comparison_key(comparison)}"),
                " writes this page again from the records.",
            ),
            element("h3", "Mechanisms"),
            _options(findings).html(),
            _plugins(comparison),
            element(
                "div",
                element("div", element("h3", "Settings"), pairs_html(labelled(_settings(comparison)))),
                element(
                    "div",
                    *(_data(task, alone=len(findings.tasks) == 1) for task in findings.tasks),
                    *machines,
                    element("h3", "Versions"),
                    pairs_html(findings.versions),
                ),
                class_="pair",
            ),
            _records(findings),
        )
    )


def command(comparison: Mapping[str, Any]) -> str:
    """What to type to do the same again."""
    words = ["subquad", "compare", *(task["task"] for task in comparison["tasks"])]
    for label in comparison["attention"]:
        words += ["--attention", label]
    options = {"length": _length(comparison), "seeds": comparison["seeds"], **comparison["model"]}
    options |= {**comparison["training"], "device": comparison["place"]["device"]}
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if not comparison["bench"]:
        words.append("--no-bench")
    elif comparison["lengths"]:
        words += ["--lengths", ",".join(map(str, comparison["lengths"]))]
    return shlex.join(words)


def _length(comparison: Mapping[str, Any]) -> int | None:
    """What is read of a sequence at most; None where each of several tasks has its own."""
    (first, *others) = (task["data"]["length"] for task in comparison["tasks"])
    return comparison["length"] if others else first


def _settings(comparison: Mapping[str, Any]) -> dict[str, object]:
    """What other parts of the page do not show."""
    return {
        "length": _length(comparison),
        "seeds": comparison["seeds"],
        "preset": comparison.get("preset"),
        **comparison["model"],
        **comparison["training"],
        **comparison["place"],
        "workers": comparison["workers"],
        "bench": comparison["bench"],
        "lengths": comparison["lengths"] or None,
    }


def _data(task: Findings, *, alone: bool) -> Markup:
    settings = task.comparison
    about = {
        "task": settings["task"],
        "task options": settings["data"]["options"] or None,
        "length": None if alone else settings["data"]["length"],
        "higher is better": settings["higher_is_better"],
        "fingerprint": settings["data"]["fingerprint"],
        **_flat(settings.get("summary", {})),
    }
    title = "Data" if alone else f"Data of {task.question.label}"
    return join((element("h3", title), pairs_html(labelled(about))))


def _options(findings: ComparisonFindings) -> Table:
    """Every option of every mechanism, defaults too, and the forms that the tasks ask for."""
    rows = [row for task in findings.tasks for row in task.rows if row.kind == "mechanism"]
    cells = []
    for label in dict.fromkeys(row.label for row in rows):
        mine = [row for row in rows if row.label == label and row.form]
        options = next((row.options for row in mine if row.finished), mine[0].options if mine else {})
        forms = dict.fromkeys(str(row.form) for row in mine)
        cells.append(
            (
                label,
                ", ".join(forms) or "none",
                ", ".join(f"{name}={value}" for name, value in options.items()) or "none",
            )
        )
    return Table(
        caption="Every option with its value", columns=("mechanism", "form", "options"), rows=tuple(cells)
    )


def _plugins(comparison: Mapping[str, Any]) -> Markup:
    """Code of other packages that the comparison had at hand; nothing where there was none."""
    plugins = comparison.get("plugins", [])
    if not plugins:
        return join(())
    columns = ("kind", "name", "package", "version")
    rows = tuple(tuple(plugin[column] for column in columns) for plugin in plugins)
    return join(
        (
            element("h3", "Plug-ins"),
            Table(caption="Code of other packages that was installed", columns=columns, rows=rows).html(),
        )
    )


def _records(findings: ComparisonFindings) -> Markup:
    documents = {
        "comparison": findings.comparison,
        "records": [_without_examples(record) for record in findings.records],
    }
    return element(
        "p",
        download(
            json.dumps(documents), name="records.json", kind="application/json", words="All records (JSON)"
        ),
        ", without the scores of single examples, which stand in the records in the folder.",
    )


def _without_examples(record: Record) -> Record:
    """What each example adds would make the page as long as the test set."""
    return {**record, "result": {name: it for name, it in record["result"].items() if name != "examples"}}


def pairs_html(pairs: Mapping[str, str]) -> Markup:
    lines = (join((element("dt", name), element("dd", value))) for name, value in pairs.items())
    return element("dl", *lines, class_="plain")


def labelled(values: Mapping[str, object]) -> dict[str, str]:
    return {
        LABELS.get(name, name.replace("_", " ")): _value_text(value)
        for name, value in values.items()
        if value is not None
    }


def _value_text(value: object) -> str:
    """A JSON value as people read it; what stands within what is in brackets."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return formats.count(value)
        case float():
            return f"{value:,g}"
        case Mapping():
            return ", ".join(f"{name} {_nested(each)}" for name, each in value.items())
        case Sequence() if not isinstance(value, str):
            return ", ".join(map(_value_text, value))
        case _:
            return str(value)


def _nested(value: object) -> str:
    plain = isinstance(value, str) or not isinstance(value, Mapping | Sequence)
    return _value_text(value) if plain else f"({_value_text(value)})"


def _flat(summary: Mapping[str, object]) -> dict[str, object]:
    """The summary of the data, one line a split."""
    rest = {name: value for name, value in summary.items() if name != "splits"}
    splits = summary.get("splits")
    return {**rest, **splits} if isinstance(splits, Mapping) else rest


CONFIGURATION = SharedSection(id="configuration", title="Configuration and machine", of=configuration_content)
