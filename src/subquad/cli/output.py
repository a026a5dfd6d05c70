"""What the commands print: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from subquad.experiments.spec import Row

if TYPE_CHECKING:
    from subquad.mechanism import Mechanism
    from subquad.patterns.drawing import Drawing
    from subquad.records import Record
    from subquad.report.cost import Scaling
    from subquad.task import Task


def show_comparison(
    comparison: dict[str, Any], records: Sequence["Record"], folder: Path, page: Path, *, as_json: bool
) -> None:
    from subquad.report import terminal
    from subquad.report.findings import worked_out

    found = worked_out(comparison, records)
    models = model_folders(records, folder)
    if as_json:
        return print_json(
            {
                "comparison": comparison,
                "answer": asdict(found.answer),
                "rows": [asdict(row) for row in found.rows],
                "failed": sum(record["status"] != "ok" for record in records),
                "missing": found.missing,
                "models": models,
                "report": str(page),
            }
        )
    console = Console()
    console.print(terminal.quality(comparison, found.rows))
    console.print(terminal.costs(comparison, found.rows))
    for line in (found.answer.sentence, *found.answer.reasons):
        console.print(line, markup=False, highlight=False)
    last = [f"model: {path}" for path in models.get(found.answer.label or "", [])[:1]]
    last += [found.incomplete] if found.missing else []
    last += [f"report: {page}"]
    for line in ("", *last):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def model_folders(records: Sequence["Record"], folder: Path) -> dict[str, list[str]]:
    """Where the trained models of each row are, by its label, in the order of the seeds."""
    from subquad.records import Store

    found: dict[str, list[str]] = {}
    for record in records:
        if record["kind"] == "fit" and record["status"] == "ok":
            spec = record["spec"]
            label = Row(attention=spec["attention"], options=spec["options"]).label
            found.setdefault(label, []).append(str(Store(folder).model_path(record["key"])))
    return found


def show_bench(document: dict[str, Any], records: Sequence["Record"], *, as_json: bool) -> None:
    from subquad.report import terminal
    from subquad.report.cost import QUANTITIES, curves

    found = curves(document, records)
    if as_json:
        return print_json(
            {
                "rows": [
                    {**asdict(curve), "scaling": {name: scaled(curve.scaling(name)) for name in QUANTITIES}}
                    for curve in found
                ],
                "machine": records[0]["machine"],
            }
        )
    console = Console()
    for quantity in QUANTITIES:
        console.print(*terminal.lengths(found, quantity))


def scaled(scaling: "Scaling | None") -> dict[str, Any] | None:
    return None if scaling is None else asdict(scaling)


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
