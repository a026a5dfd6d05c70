"""`subquad data`: data sets made ahead, what there is of them, and no more of them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from subquad.cli.options import Json, examples
from subquad.cli.output import print_json
from subquad.cli.progress import preparing
from subquad.documents import Damaged
from subquad.notation import written

app = typer.Typer(help="Make the data of tasks ahead, and see or clear what is kept.", no_args_is_help=True)

UNKNOWN = object()  # the default of an option that a task has no more


@app.command(epilog=examples("subquad data prepare listops", "subquad data prepare pathfinder:side=64 text"))
def prepare(
    task: Annotated[
        list[str], typer.Argument(metavar="NAME[:option=value,…]…", help="Tasks of `subquad list`.")
    ],
    as_json: Json = False,
) -> None:
    """Make or fetch a task's data, and keep them for all comparisons.

    What was interrupted goes on where it was, and what is damaged is set aside and made anew.

    Data are kept where SUBQUAD_CACHE says, or in the platform's folder for caches.
    """
    found: list[dict[str, Any]] = []
    with preparing("reading the request") as tell:
        from subquad import tasks
        from subquad.experiments.rows import task_of

        requests = {text: task_of(text) for text in task}
        for text, request in requests.items():
            path = tasks.prepare(request.name, tell=partial(tell, f"making {text}"), **request.options)
            found.append({**({"folder": None} if path is None else described(path)), "asked": text})
    if as_json:
        return print_json(found)
    for entry in found:
        kept = f"{size(entry['bytes'])} in {entry['folder']}" if entry["folder"] else "read from its files"
        print(f"{entry['asked']}: {kept}")


@app.command("list", epilog=examples("subquad data list", "subquad data list --json"))
def list_prepared(as_json: Json = False) -> None:
    """What is kept: task, options, size, and how much of it is made."""
    from subquad.cli import tables
    from subquad.tasks.prepared import entries, folder

    known = [described(entry.path) for entry in entries()]
    if as_json:
        return print_json(known)
    if known:
        Console().print(tables.prepared(known))
    print(f"{size(sum(entry['bytes'] for entry in known))} in {folder()}")


@app.command(epilog=examples("subquad data clear pathfinder", "subquad data clear --all"))
def clear(
    task: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A task's name.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All data sets.")] = False,
) -> None:
    """Delete data sets that are kept. A comparison that needs one makes it again."""
    if (task is None) != everything:
        raise ValueError("name one task, or give --all")
    from subquad.tasks.prepared import entries

    chosen = [entry for entry in entries() if everything or entry.path.name.rpartition("-")[0] == task]
    freed = sum(entry.size for entry in chosen)
    for entry in chosen:
        entry.clear()
    print(f"{len(chosen)} data set{'s' * (len(chosen) != 1)} deleted, {size(freed)}")


def described(path: Path) -> dict[str, Any]:
    """What is in a folder of the cache, as JSON; "done" is None where it is damaged."""
    from subquad.tasks.prepared import Entry

    entry = Entry(path)
    try:
        known = entry.described()
    except Damaged:
        return {"asked": path.name, "bytes": entry.size, "done": None, "folder": str(path)}
    return {"asked": request_text(known), **known}


def request_text(known: Mapping[str, Any]) -> str:
    """What users type for a data set, as far as its task is known here."""
    from subquad import tasks

    cls = tasks.catalog().get(known["task"])
    defaults = {} if cls is None else tasks.options(cls)
    others = {name: value for name, value in known["options"].items() if defaults.get(name, UNKNOWN) != value}
    return written(known["task"], others)


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
