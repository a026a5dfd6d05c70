"""What the commands print: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from subquad.mechanism import Mechanism
    from subquad.nn.layers.layer import Layer
    from subquad.patterns.drawing import Drawing
    from subquad.records import Record, Store
    from subquad.report import ComparisonFindings, Findings
    from subquad.report.cost import Curve
    from subquad.report.recommendation import Recommendation
    from subquad.task import Task


def show_comparison(findings: "ComparisonFindings", store: "Store", page: Path, *, as_json: bool) -> None:
    from subquad.cli import tables

    models = [model_folders(task, store) for task in findings.tasks]
    if as_json:
        return print_json(
            {
                "comparison": findings.comparison,
                "answer": asdict(findings.answer),
                "overview": findings.overview
                and {
                    **asdict(findings.overview),
                    "ranked": findings.overview.ranked,
                    "averaged": findings.overview.averaged,
                },
                "tasks": [task_document(task, its) for task, its in zip(findings.tasks, models, strict=True)],
                "costs": [cost_document(curve) for curve in findings.cost_curves],
                "failures": [asdict(run) for run in findings.failures],
                "failed": len(findings.failures),
                "missing": findings.missing,
                "report": store.where(page),
            }
        )
    console, last = Console(), []

    def say(*lines: str, fold: bool = True) -> None:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=not fold)

    for task, its in zip(findings.tasks, models, strict=True):
        console.print(tables.quality(task.question, task.rows))
        console.print(tables.costs(task.question, task.rows))
        say(task.answer.sentence, *task.answer.reasons, "")
        what = "model" if findings.overview is None else f"model for {task.question.label}"
        last += [f"{what}: {path}" for path in its.get(task.answer.label or "", [])[:1]]
    if findings.overview:
        console.print(tables.overview(findings.overview))
        say(
            *tables.overview_key(findings.overview),
            "",
            findings.answer.sentence,
            *findings.answer.reasons,
            "",
        )
    last += [findings.incomplete] if findings.missing else []
    last += [f"report: {store.where(page)}"]
    say(*last, fold=False)


def task_document(task: "Findings", models: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What was found on one task, as JSON."""
    return {
        "label": task.question.label,
        "answer": asdict(task.answer),
        "rows": [asdict(row) for row in task.rows],
        "budgets": task.budgets and asdict(task.budgets),
        "parts": [asdict(parts) for parts in task.parts],
        "fairness": [asdict(equality) for equality in task.equalities],
        "models": models,
    }


def model_folders(task: "Findings", store: "Store") -> dict[str, list[str]]:
    """Where the trained models of each row are, by its label, in the order of the seeds."""
    from subquad.report.question import identity

    labels = {entry.identity: entry.label for entry in task.question.entries}
    folders: dict[str, list[str]] = {}
    for record in task.records:
        if record["kind"] == "fit" and record["status"] == "ok":
            mechanism, path = record["spec"]["mechanism"], store.model_path(record["key"])
            label = labels.get(identity(mechanism)) or str(mechanism["attention"])
            folders.setdefault(label, []).append(store.where(path))
    return folders


def show_bench(document: dict[str, Any], records: Sequence["Record"], *, as_json: bool) -> None:
    from subquad.cli import tables
    from subquad.report.cost import QUANTITIES, curves
    from subquad.report.question import entries_of

    benched = curves(entries_of(document["rows"]), records)
    if as_json:
        return print_json(
            {"rows": [cost_document(curve) for curve in benched], "machine": records[0]["machine"]}
        )
    console = Console()
    for quantity in QUANTITIES:
        console.print(*tables.lengths(benched, quantity))


def announce(document: Mapping[str, Any], seconds: float) -> None:
    """What is going to be measured and how long that takes at most, on standard error."""
    from subquad.report import formats

    candidates = [row["label"] for row in document["rows"][1:]]
    lengths = [f"{length:,}" for length in document["lengths"]]
    exercises = [exercise["label"] for exercise in document["exercises"]]
    timed = f"{formats.plural(len(candidates), 'candidate')} at {formats.listed(lengths)} tokens"
    training = f", then the fast ones trained on {formats.listed(exercises)}" if exercises else ""
    Console(stderr=True, highlight=False).print(
        f"{timed}{training}: about {formats.duration(seconds)}, if nothing is on record",
        markup=False,
        soft_wrap=True,
    )


def show_recommendation(recommendation: "Recommendation", *, as_json: bool) -> None:
    from subquad.cli import tables

    if as_json:
        return print_json(asdict(recommendation))
    console = Console()
    console.print(f"{recommendation.paragraph}\n", markup=False, highlight=False)
    console.print(tables.recommendation(recommendation))
    others = {row.label: row.reason for row in recommendation.rows if row.reason} | {
        **recommendation.refusals
    }
    for title, lines in (
        ("the others", [f"{label}: {reason}" for label, reason in others.items()]),
        ("what would change the answer", recommendation.changes),
        ("what it rests on", recommendation.notes),
    ):
        if lines:
            console.print(title, style="bold")
            for line in lines:
                console.print(Padding(Text(line), (0, 0, 0, 2)))
            console.print()


def cost_document(curve: "Curve") -> dict[str, Any]:
    """Time and memory by length, with what follows from them, as JSON."""
    from subquad.report.cost import QUANTITIES

    scalings = {quantity: curve.scaling(quantity) for quantity in QUANTITIES}
    return {
        **asdict(curve),
        "scaling": {quantity: scaling and asdict(scaling) for quantity, scaling in scalings.items()},
    }


def show_pattern(drawing: "Drawing", svg: Path | None, *, as_json: bool) -> None:
    if as_json:
        return print_json({**drawing.to_json(), "svg": str(svg) if svg else None})
    console = Console()
    columns = console.width
    print(drawing.text(columns=columns, lines=console.height if console.is_terminal else columns))
    if svg:
        print(f"svg: {svg}")


def described(cls: type["Mechanism"]) -> dict[str, Any]:
    """A mechanism's traits and options as JSON."""
    from subquad.registry import options

    claims = {field.name: getattr(cls.traits, field.name) for field in fields(cls.traits)}
    plain = {name: dict(claim) if isinstance(claim, Mapping) else claim for name, claim in claims.items()}
    return {"kind": "mechanism", **plain, "options": options(cls)}


def described_layer(cls: type["Layer"]) -> dict[str, Any]:
    """A whole layer's traits and options as JSON."""
    from subquad.registry import options

    claims = {field.name: getattr(cls.traits, field.name) for field in fields(cls.traits)}
    checked = [dict(chosen) for chosen in cls.traits.checked]
    return {"kind": "layer", **claims, "checked": checked, "options": options(cls)}


def described_task(cls: type["Task"]) -> dict[str, Any]:
    """A task's traits and options as JSON."""
    from subquad.tasks import options

    return {"kind": "task", **asdict(cls.traits), "options": options(cls)}


def print_json(document: object) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))
