"""What the commands print: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from subquad.mechanism import Mechanism
    from subquad.patterns.drawing import Drawing
    from subquad.records import Record
    from subquad.report import ComparisonFindings, Findings
    from subquad.report.cost import Curve
    from subquad.task import Task


def show_comparison(findings: "ComparisonFindings", folder: Path, page: Path, *, as_json: bool) -> None:
    from subquad.cli import tables

    models = [model_folders(task, folder) for task in findings.tasks]
    if as_json:
        return print_json(
            {
                "comparison": findings.comparison,
                "answer": asdict(findings.answer),
                "tasks": [task_document(task, its) for task, its in zip(findings.tasks, models, strict=True)],
                "costs": [cost_document(curve) for curve in findings.cost_curves],
                "failures": [asdict(run) for run in findings.failures],
                "failed": len(findings.failures),
                "missing": findings.missing,
                "report": str(page),
            }
        )
    console, last = Console(), []
    for task, its in zip(findings.tasks, models, strict=True):
        console.print(tables.quality(task.question, task.rows))
        console.print(tables.costs(task.question, task.rows))
        for line in (task.answer.sentence, *task.answer.reasons):
            console.print(line, markup=False, highlight=False)
        last += [f"model: {path}" for path in its.get(task.answer.label or "", [])[:1]]
    if len(findings.tasks) > 1:
        for line in ("", findings.answer.sentence, *findings.answer.reasons):
            console.print(line, markup=False, highlight=False)
    last += [findings.incomplete] if findings.missing else []
    last += [f"report: {page}"]
    for line in ("", *last):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def task_document(task: "Findings", models: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What was found on one task, as JSON."""
    return {
        "label": task.question.label,
        "answer": asdict(task.answer),
        "rows": [asdict(row) for row in task.rows],
        "fairness": [asdict(equality) for equality in task.equalities],
        "models": models,
    }


def model_folders(task: "Findings", folder: Path) -> dict[str, list[str]]:
    """Where the trained models of each row are, by its label, in the order of the seeds."""
    from subquad.records import Store
    from subquad.report.question import identity

    labels = {entry.identity: entry.label for entry in task.question.entries}
    folders: dict[str, list[str]] = {}
    for record in task.records:
        if record["kind"] == "fit" and record["status"] == "ok":
            mechanism, path = record["spec"]["mechanism"], Store(folder).model_path(record["key"])
            label = labels.get(identity(mechanism)) or str(mechanism["attention"])
            folders.setdefault(label, []).append(str(path))
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


def described_task(cls: type["Task"]) -> dict[str, Any]:
    """A task's traits and options as JSON."""
    from subquad.tasks import options

    return {"kind": "task", **asdict(cls.traits), "options": options(cls)}


def print_json(document: object) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))
