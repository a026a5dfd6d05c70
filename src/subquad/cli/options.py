"""What the commands' options share: how they are declared, grouped in a help, and read."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any

import typer
from rich.markup import escape

from subquad.bounds import AT_LEAST_ONE
from subquad.config import Config, Help
from subquad.experiments.presets import PRESETS, preset

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB)", re.IGNORECASE)
UNITS_MB = {"MB": 1.0, "GB": 1e3}
MODEL, TRAINING, BENCH, RUNS = "Model", "Training", "Bench", "Runs"  # panels of a help

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Where records and the report go; with --executor ray also an address, such as s3://BUCKET/DIR.",
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda or mps; auto takes CUDA where it is.", rich_help_panel=RUNS)
]
Workers = Annotated[
    int,
    typer.Option(
        help="Fits at a time on a machine. They share its cores, and disturb each other's timings a little.",
        min=1,
        rich_help_panel=RUNS,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say how long all will take, by a few steps, and stop.",
        rich_help_panel=RUNS,
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        metavar="NAME[:option=value,…]",
        help="local, a process of this machine for each run; ray, which has the options nodes=N for a "
        "cluster that will grow to so many, and memory_gb=N for each run; or what a package brings.",
        rich_help_panel=RUNS,
    ),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="Of the Ray cluster to join, for --executor ray; auto: the one that this machine is part of. By "
        "default what RAY_ADDRESS says, or else a cluster of this machine alone.",
        rich_help_panel=RUNS,
        show_default=False,
    ),
]
Attention = Annotated[
    list[str],
    typer.Option(
        metavar="NAME[:option=value,…]",
        help="Rows of the table, with commas between them or one at a time. 'all' takes every one; "
        "'performer:features=64|128' is a row for each value.",
    ),
]


def use_preset(context: Any, name: str | None) -> None:
    """Let its options be the defaults of those that are not given; the context is click's."""
    if name is not None:
        context.default_map = {**(context.default_map or {}), **preset(name).options}


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        callback=use_preset,
        is_eager=True,
        expose_value=False,
        help=f"A published skeleton with its learning rate and weight decay: {', '.join(PRESETS)}. Options "
        "beside it go before. Not its schedule, pooling, classifier or budget.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]


def at_address(executor: str, address: str) -> str:
    """An executor that joins the cluster there."""
    return f'{executor}{"," if ":" in executor else ":"}address="{address}"' if address else executor


def number(text: str, *, panel: str | None = None, least: int = 1) -> Any:
    return typer.Option(help=text, min=least, rich_help_panel=panel)


def option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


def with_default(text: str, *default: object, by: str = ",") -> dict[str, Any]:
    """Of an option whose help says its default itself. Rich would take the brackets for markup."""
    shown = escape(f"[default: {by.join(map(str, default))}]")
    return {"help": f"{text} {shown}", "show_default": False}


def lengths_option(*names: str, panel: str | None = None, **shown: Any) -> Any:
    return typer.Option("--lengths", *names, metavar="N[,N,…]", rich_help_panel=panel, **shown)


def with_options_of(**panels: str | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take, in the place of its parameters of these names, which are configs, their options.

    Each config's options stand in a panel of the help; the parameter's default has their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        defaults: dict[str, Config] = {name: signature.parameters[name].default for name in panels}

        def run(**values: Any) -> None:
            configs = {
                name: type(config)(**{each.name: values.pop(each.name) for each in fields(config)})
                for name, config in defaults.items()
            }
            command(**values, **configs)

        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            parameters += options_of(defaults[name], panels[name]) if name in panels else [parameter]
        flat: Any = wraps(command)(run)
        flat.__signature__ = signature.replace(parameters=parameters)  # typer reads both
        flat.__annotations__ = {each.name: each.annotation for each in parameters}
        return flat

    return decorate


def options_of(config: Config, panel: str | None) -> Iterator[inspect.Parameter]:
    """A parameter for each field, as typer takes them."""
    for each in fields(config):
        marks: Sequence[Any] = getattr(each.type, "__metadata__", ())
        (text,) = (mark.text for mark in marks if isinstance(mark, Help))
        declared = typer.Option(help=text, min=1 if AT_LEAST_ONE in marks else None, rich_help_panel=panel)
        yield inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=getattr(config, each.name),
            annotation=Annotated[each.type, declared],
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


def decimals(name: str, texts: Sequence[str]) -> tuple[float, ...]:
    """Those of an option that is given several times, or once with commas. Raises `ValueError`."""
    try:
        return tuple(float(text) for listed in texts for text in listed.split(","))
    except ValueError:
        raise ValueError(f"{name} takes numbers with commas between them, not {','.join(texts)!r}") from None


def megabytes(name: str, text: str) -> float:
    """A size such as "500MB" or "1.5 GB" in 10 ** 6 bytes. Raises `ValueError`."""
    match = SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise ValueError(f"{name} takes a size such as 500MB or 2GB, not {text!r}")
    return float(match[1]) * UNITS_MB[match[2].upper()]
