"""Malformed inputs of the command line, drawn at random: refused in one line, or done as they say."""

import contextlib
import io
import os
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import report_samples as made_up
import typer
from corruption import corrupt, corrupt_bytes
from own_sample import write

from faults.command import SIZES, Ended
from faults.kept import finished
from subquad import executors
from subquad.__main__ import main
from subquad.cli import app
from subquad.executors import Local, run_here
from subquad.experiments import fit
from subquad.records import Store

INPUTS_AT_ONCE = 20  # of a process
LONGEST_S = 60  # that one may take
MEMORY = 2**35  # bytes of addresses
MESSAGE = 2000  # characters at most, beside what was given

ATTENTION = (
    "linear",
    "performer:features=8",
    "local:width=4*3+softmax",
    "(local:width=4*2&taylor)*2+softmax",
    'pattern:expr="Local(4) | Random(2, seed=1)"',
    "performer:features=4|8",
    "linformer:rank=4,shared=true",
)
EXECUTORS = ("local", "local:slots=2", "ray:nodes=2,memory_gb=0.5", "ray:address=127.0.0.1:1", "mine:a=1")
LETTERS = [*":=,|+&*()[]\"'.-_ 019eEx☃é٣\n\t\0\ud800\u202e", "\x1b[2J", "*0", "*99", "()"]
WORDS = [
    *("", " ", "x", "-1", "0", "1", "2", "1.5", "1e3", "1e999", "nan", "-inf", "0x10", "٣", "true", "auto"),
    *("[red]", "a\0b", "a\nb", "\x1b[2J", "../..", "/dev/zero", "~", "9" * 30, "9" * 5000, "x" * 5000),
]
VALUES = [
    *("nan", "-inf", "true", "0", "-1", "2", "1e999", "9" * 400, "1979-05-27", "[]", "{}", "[[1]]"),
    *("''", "'x'", "'../../x'", "'/dev/zero'", "'a\u202eb'", '"\\u0000"', '"\\u001b[2J"', "'amount'"),
]
CELLS = [
    *("", " ", "nan", "inf", "1e999", "-1e400", "-1", "9" * 400, "true", "2024-13-45", "0000-00-00"),
    *('"', "'", "\0", "é", "=1+1", "<b>x</b>", "\x1b[2J", "x" * 10_000, "1,2", "a\nb", "\ufeff", "account"),
]
COLUMNS: list[Callable[[pl.Expr], pl.Expr]] = [
    lambda column: pl.lit(None),
    lambda column: pl.lit(None, dtype=pl.String),
    lambda column: pl.concat_list(column),
    lambda column: pl.struct(column),
    lambda column: column.cast(pl.String).cast(pl.Binary),
    lambda column: column.cast(pl.String).cast(pl.Categorical),
    lambda column: column.cast(pl.String).hash(),
    lambda column: pl.lit(True),
    lambda column: pl.lit(float("nan")),
    lambda column: pl.lit(float("inf")),
    lambda column: pl.int_range(pl.len()).cast(pl.Duration),
    lambda column: pl.int_range(pl.len()).cast(pl.Time),
    lambda column: pl.int_range(pl.len()).cast(pl.Decimal(38, 10)),
    lambda column: pl.int_range(pl.len()).cast(pl.Date),
    lambda column: pl.int_range(pl.len()).cast(pl.Datetime("ns", "Asia/Tokyo")),
    lambda column: pl.lit(2**63 - 1),
    lambda column: pl.lit("x" * 10_000),
]

Input = Callable[[random.Random, Path, Path], list[str]]  # a folder of its own, and a schema that is intact


class TooLong(BaseException):
    """An input keeps the command busy."""


def malformed_inputs(bench: Any, chance: random.Random, folder: Path) -> Iterator[str]:
    """Some inputs, one after the other in a process of their own."""
    folder.mkdir()
    results = folder / "results"
    results.touch()
    process = get_context("spawn").Process(target=answer, args=(chance, folder, results))
    process.start()  # a fork of one that has used Polars would wait for ever
    process.join(INPUTS_AT_ONCE * LONGEST_S)
    process.kill()
    lines = results.read_text().splitlines()
    given, answered = lines[::2], lines[1::2]
    for place in range(INPUTS_AT_ONCE):
        if place < len(answered):
            yield answered[place] and f"{given[place]}: {answered[place]}"
        else:
            yield f"the process ended by {given[-1:]}"


def answer(chance: random.Random, folder: Path, results: Path) -> None:
    """Give the command one input after the other; for each a line before it and one behind it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    os.environ |= {"COLUMNS": "200", "SUBQUAD_CACHE": str(folder / "cache")}
    sys.modules["ray"] = None  # pyright: ignore[reportArgumentType]  # no cluster is started
    executors.catalog()
    Local.run = lambda self, spec, store, tell: run_here(spec, store, tell)
    fit.cost = lambda training: {}
    signal.signal(signal.SIGALRM, too_long)
    store = Store(folder / "runs")
    intact = write(folder / "own")
    first = call(compare(intact, "--attention", "linear"))
    assert first.status == 0, first
    before = finished(store)
    with results.open("a", buffering=1) as file:
        for number in range(INPUTS_AT_ONCE):
            name = chance.choice(list(INPUTS))
            arguments = INPUTS[name](chance, folder / f"input-{number}", intact)
            file.write(f"{name} {' '.join(map(repr, arguments))[:600]}\n")
            said = call(arguments)
            now = finished(store)
            gone = any(now.get(key) != content for key, content in before.items())
            wrong = "a record is gone" if gone else unclear(said, arguments)
            file.write(f"{' '.join(wrong.split())}\n")
            before |= now


def too_long(number: int, frame: object) -> None:
    raise TooLong


def call(arguments: list[str]) -> Ended:
    """The command in this process."""
    out, told = io.StringIO(), io.StringIO()
    sys.argv = ["subquad", *arguments]
    signal.alarm(LONGEST_S)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status: Any = main()
        except SystemExit as end:
            status = end.code or 0
        except TooLong:
            status = f"no end after {LONGEST_S} seconds"
        finally:
            signal.alarm(0)
    return Ended(status, out.getvalue(), told.getvalue())


def unclear(said: Ended, arguments: list[str]) -> str:
    """What is wrong with how an input was answered; "" for nothing."""
    if wrong := said.wrong(0, 1, 2):
        return wrong
    usage = said.told.startswith("Usage: ")  # as the parser of options says it, in a box
    lines = said.told.splitlines()
    if said.status == 2 and not usage and (len(lines) != 1 or not lines[0].startswith("subquad: ")):
        return f"it is no line: {said.told[:300]}"
    if len(said.told) > MESSAGE + 3 * max(map(len, arguments)):
        return f"{len(said.told):,} characters: {said.told[:300]}"
    return ""


def compare(schema: Path, *more: str) -> list[str]:
    """The arguments of a comparison."""
    own = ["custom", "--data", str(schema), "--length", "20"]
    return ["compare", *own, *SIZES, "--steps", "3", "--out", "runs", *more]


def schema(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    path = write(folder)
    for _ in range(chance.choice((1, 1, 2))):
        lines = path.read_text().splitlines()
        place = chance.randrange(len(lines))
        name, equals, _ = lines[place].partition("=")
        match chance.choice(("value", "value", "drop", "twice", "name", "nest", "bytes")):
            case "value" if equals:
                lines[place] = f"{name}= {chance.choice(VALUES)}"
            case "drop":
                del lines[place]
            case "twice":
                lines.insert(place, lines[place])
            case "name":
                other = chance.choice(("x", "", '"a b"', "é", "events."))
                lines[place] = lines[place].replace(name[:3], other)
            case "nest":
                lines[place] = f"{name or 'a'}= {'[' * 2000}"
            case _:
                corrupt_bytes(path, chance)
                break
        path.write_text("\n".join(lines))
    return compare(path, "--attention", "linear")


def table(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    path = write(folder).with_name(chance.choice(("events.csv", "owners.csv")))
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row, column = chance.randrange(len(rows)), chance.randrange(len(rows[0]))
    match chance.choice(
        ("cell", "cell", "cell", "column", "header", "ragged", "empty", "separator", "corrupt")
    ):
        case "cell":
            rows[row][column] = chance.choice(CELLS)
        case "column":
            for each in rows:
                each[column] = chance.choice((each[column], *CELLS)) if chance.random() < 0.5 else each[0]
        case "header":
            rows[0][column] = chance.choice(rows[0])
        case "ragged":
            rows[row] += ["more"] * chance.randint(1, 3)
        case "empty":
            del rows[chance.randint(0, 2) :]
        case "separator":
            rows = [[chance.choice(";\t|").join(each)] for each in rows]
        case _:
            corrupt(path, chance)
            return compare(folder / "schema.toml", "--attention", "linear")
    path.write_text("\n".join(map(",".join, rows)))
    return compare(folder / "schema.toml", "--attention", "linear")


def columnar(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    """Tables in Parquet, with columns of other types."""
    schema = write(folder)
    name = chance.choice(("events", "owners"))
    frame = pl.read_csv(folder / f"{name}.csv")
    column = chance.choice(frame.columns)
    frame = frame.with_columns(chance.choice(COLUMNS)(pl.col(column)).alias(column))
    path = folder / f"{name}.parquet"
    frame.write_parquet(path)
    if chance.random() < 0.3:
        corrupt(path, chance)
    schema.write_text(schema.read_text().replace(f"{name}.csv", path.name))
    return compare(schema, "--attention", "linear")


def document(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    """The file of a comparison, of which a report is made."""
    setting = made_up.comparison([made_up.ROWS[0], made_up.ROWS[-1]], seeds=1, lengths=[512, 4096])
    runs = made_up.write(folder, setting, made_up.sample(setting))
    corrupt(runs / "comparison.json", chance)
    return ["report", str(runs)]


def options(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    given = []
    for _ in range(chance.choice((1, 1, 2))):
        each = chance.choice([option for option in OPTIONS if option.opts[0] not in UNTRIED])
        given += [each.opts[0], *([] if each.is_flag else [chance.choice(WORDS)])]
    return compare(intact, "--attention", "linear", *given)


def attention(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    text = misspelt(chance.choice(ATTENTION), chance)
    return compare(intact, f"--attention={text}")


def executor(chance: random.Random, folder: Path, intact: Path) -> list[str]:
    text = misspelt(chance.choice(EXECUTORS), chance)
    return compare(intact, "--attention", "linear", f"--executor={text}")


def misspelt(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        stop = start + chance.choice((0, 0, 1, 3))
        text = text[:start] + chance.choice((*LETTERS, "", text[start:stop] * 2)) + text[stop:]
    return text


INPUTS: dict[str, Input] = {
    "schema": schema,
    "table": table,
    "columnar table": columnar,
    "comparison": document,
    "options": options,
    "attention": attention,
    "executor": executor,
}
UNTRIED = ("--help", "--executor", "--data", "--out", "--attention")  # tried elsewhere
OPTIONS: list[Any] = [
    each
    for each in typer.main.get_command(app).commands["compare"].params  # pyright: ignore[reportAttributeAccessIssue]
    if each.param_type_name == "option"
]
