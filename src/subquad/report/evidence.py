"""The sections that the answer rests on: fairness, failures, configuration and machine, literature."""

import json
from collections.abc import Mapping, Sequence

from subquad.records import Record, comparison_key
from subquad.report import audit, units
from subquad.report.findings import Findings
from subquad.report.markup import Markup, element, join
from subquad.report.table import download, scrolling

# of comparison.json: what is told elsewhere in the page
TOLD = ("title", "attention", "rows", "keys", "summary", "data", "schema", "target", "kind", "metric")
NAMES = {"memory_gb": "memory, GB", "timeout": "time-out, s", "os": "system", "dim": "width"}


def fairness(found: Findings) -> list[Markup]:
    equalities = audit.equalities(found.records)
    broken = [each.what for each in equalities if each.broken]
    verdict = "The mechanism is all that differed. " if not broken else ""
    if broken:
        verdict = f"Not all was equal: {units.listed(broken)}. Scores may differ for that reason. "
    verdict += "What records can show is checked in them; the rest follows from how the runs are made."
    head = element("tr", *(element("th", name, scope="col") for name in ("what", "value", "how it is known")))
    rows = (
        element(
            "tr",
            element("th", each.what, scope="row"),
            element("td", each.value),
            element("td", ("▲ " if each.broken else "") + each.found),
            class_="broken" if each.broken else None,
        )
        for each in equalities
    )
    caption = "What was equal for all mechanisms"
    table = element("table", element("caption", caption), element("thead", head), element("tbody", *rows))
    parameters = audit.parameters(found.rows)
    note = (
        "Those in attention are its projections and the mechanism's own weights. A row with over 10 % more "
        "than softmax is marked: its score may be theirs."
    )
    return [
        element("p", verdict),
        scrolling(table, label=caption),
        element("h3", "Parameters"),
        *([element("p", note), parameters.html()] if parameters.rows else [element("p", "None known yet.")]),
    ]


def failures(found: Findings) -> list[Markup]:
    table = audit.failures(found.records, audit.run_labels(found.comparison, found.records))
    if not table.rows:
        return [element("p", "No run failed.")]
    note = "A run that exhausts memory, time or numbers is a result. The others went on without it."
    return [element("p", note), table.html()]


def configuration(found: Findings) -> list[Markup]:
    """All it takes to judge where the figures come from, and to make them again."""
    asked = found.comparison
    settings = {name: value for name, value in asked.items() if name not in TOLD}
    data = {"fingerprint": asked.get("data"), **_flat(asked.get("summary", {}))}
    machines = (
        join((element("h3", "Machine"), _pairs({"runs": units.count(runs), **_words(about)})))
        for runs, about in audit.machines(found.records)
    )
    everything = json.dumps({"comparison": asked, "records": [_brief(record) for record in found.records]})
    return [
        element("h3", "To do it again"),
        element("pre", element("code", audit.command(asked)), tabindex=0, aria_label="Command"),
        element(
            "p",
            "Add ",
            element("code", "--out DIR"),
            " for a folder of your own; what is in it already is not done again. ",
            element("code", f"subquad report DIR {comparison_key(asked)}"),
            " writes this page again from the records.",
        ),
        element("h3", "Mechanisms"),
        audit.options(found.rows).html(),
        element(
            "div",
            element("div", element("h3", "Settings"), _pairs(_words(settings))),
            element(
                "div",
                element("h3", "Data"),
                _pairs(_words(data)),
                *machines,
                element("h3", "Versions"),
                _pairs(audit.versions(found.records)),
            ),
            class_="pair",
        ),
        element(
            "p",
            download(everything, name="records.json", kind="application/json", words="All records (JSON)"),
            ", without the scores of single examples, which stand in the records in the folder.",
        ),
    ]


def _brief(record: Record) -> Record:
    """Without what each example adds, which would make the page as long as the test set."""
    return {**record, "result": {name: it for name, it in record["result"].items() if name != "examples"}}


def literature() -> list[Markup]:
    note = (
        "Published figures are another layer: they come from other machines, budgets and splits, and never "
        "share a table with what was measured here. For this task none are shown."
    )
    return [element("p", note)]


def footer(found: Findings) -> Markup:
    version = audit.versions(found.records).get("subquad")
    made = f"Made by subquad {version}" if version else "Made by subquad"
    records = units.plural(len(found.records), "record")
    return element("footer", f"{made} from {records}. This file is whole: it needs no network.")


def _pairs(pairs: Mapping[str, str]) -> Markup:
    lines = (join((element("dt", name), element("dd", value))) for name, value in pairs.items())
    return element("dl", *lines, class_="plain")


def _words(values: Mapping[str, object]) -> dict[str, str]:
    return {
        NAMES.get(name, name.replace("_", " ")): _word(value)
        for name, value in values.items()
        if value is not None
    }


def _word(value: object) -> str:
    """A JSON value as people read it; what stands within what is in brackets."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return units.count(value)
        case float():
            return f"{value:,g}"
        case Mapping():
            return ", ".join(f"{name} {_within(each)}" for name, each in value.items())
        case Sequence() if not isinstance(value, str):
            return ", ".join(map(_word, value))
        case _:
            return str(value)


def _within(value: object) -> str:
    plain = isinstance(value, str) or not isinstance(value, Mapping | Sequence)
    return _word(value) if plain else f"({_word(value)})"


def _flat(summary: Mapping[str, object]) -> dict[str, object]:
    """The summary of the data, one line a split."""
    rest = {name: value for name, value in summary.items() if name != "splits"}
    splits = summary.get("splits")
    return {**rest, **splits} if isinstance(splits, Mapping) else rest
