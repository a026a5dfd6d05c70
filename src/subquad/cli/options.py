"""What the commands' options share: how they are declared, grouped in a help, and read."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

MODEL, TRAINING, BENCH, RUNS = "Model", "Training", "Bench", "Runs"  # panels of a help

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Attention = Annotated[
    list[str],
    typer.Option(
        metavar="NAME[:option=value,…]",
        help="Rows of the table, with commas between them or one at a time. 'all' takes every one.",
    ),
]


def number(text: str, *, panel: str | None = None) -> Any:
    return typer.Option(help=text, min=1, rich_help_panel=panel)


def option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


def lengths_option(text: str, *names: str, panel: str | None = None) -> Any:
    return typer.Option(
        "--lengths", *names, metavar="N[,N,…]", help=text, show_default=False, rich_help_panel=panel
    )


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(("Examples:", *lines))


def whole_numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Those of an option that is given several times, or once with commas. Raises `ValueError`."""
    numbers = [text.strip() for listed in texts for text in listed.split(",")]
    for number in numbers:
        if not (number.isdecimal() and int(number)):
            raise ValueError(f"{name} takes whole numbers of at least 1, not {number!r}")
    return tuple(map(int, numbers))
