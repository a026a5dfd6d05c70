"""The commands: parse, call, print. Whatever is heavy is imported by the command that needs it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from subquad import __version__
from subquad.cli import data as data_commands
from subquad.cli.estimates import estimated, show_estimate
from subquad.cli.options import (
    BENCH,
    MODEL,
    RUNS,
    TRAINING,
    Address,
    Attention,
    Device,
    DryRun,
    Executor,
    Json,
    Out,
    Preset,
    Workers,
    at_address,
    examples,
    lengths_option,
    number,
    option,
    whole_numbers,
    with_default,
    with_options_of,
)
from subquad.cli.output import (
    described,
    described_layer,
    described_task,
    print_json,
    show_bench,
    show_comparison,
    show_pattern,
)
from subquad.cli.progress import preparing, watching, working
from subquad.config import ModelConfig
from subquad.experiments.config import Benchmark, Comparison, InputsConfig, TrainingConfig
from subquad.files import write_whole
from subquad.notation import written

if TYPE_CHECKING:
    from subquad.records import Record

app = typer.Typer(
    name="subquad",
    help="Compare efficient attention mechanisms on your own data and machine.",
    epilog="Exit status: 0 done, 1 a run or a check failed or a run is missing, 2 bad usage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(data_commands.app, name="data")

FAILED = 1
OWN = "custom"  # the task that a schema describes
COMPARISON, BENCHMARK = Comparison(), Benchmark()  # their defaults


def show_version(wanted: bool) -> bool:
    if wanted:
        print(f"subquad {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def whole(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command(
    epilog=examples(
        "subquad compare",
        "subquad compare --data schema.toml --attention softmax,linear,performer:features=64 --seeds 3",
        "subquad compare listops:size=quick recall:size=quick --attention softmax,linear,local --no-bench",
        "subquad compare transactions --length 128 --steps 50 --no-bench",
        "subquad compare listops:size=small --preset lra-ports --steps 2000",
    )
)
@with_options_of(model=MODEL, training=TRAINING)
def compare(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME[:option=value,…]]…",
            **with_default("Of `subquad list`; with --data none but your own.", *COMPARISON.tasks, by=" "),
        ),
    ] = [],  # noqa: B006  # typer copies it
    attention: Attention = list(COMPARISON.attention),  # noqa: B006  # typer copies it
    target: Annotated[
        str | None,
        typer.Option(
            help="What is predicted; by default the task's first target. Of several tasks: NAME:target=….",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int | None,
        number("Tokens of a sequence at most, by default each task's; a large number keeps all whole."),
    ] = COMPARISON.length,
    seeds: Annotated[int, number("Fits of each row: seeds 0, 1, … .")] = COMPARISON.seeds,
    _: Preset = None,
    model: ModelConfig = COMPARISON.model,
    training: TrainingConfig = COMPARISON.training,
    with_bench: Annotated[
        bool,
        typer.Option("--bench/--no-bench", help="Time and memory by length.", rich_help_panel=BENCH),
    ] = COMPARISON.bench,
    lengths: Annotated[
        list[str],
        lengths_option(panel=BENCH, **with_default("Tokens.", "1, 2, 4, 8, 16 times the longest task's")),
    ] = [],  # noqa: B006  # typer copies it
    out: Out = "runs",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A schema.toml that describes your own data: one more task.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = COMPARISON.workers,
    executor: Executor = COMPARISON.executor,
    address: Address = "",
    device: Device = COMPARISON.device,
    timeout: Annotated[float, option("Seconds that one run may take.", RUNS)] = COMPARISON.timeout,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Choose --steps so that all fits into 90s, 10m, 2h: the same for all rows, 20 at least.",
            rich_help_panel=RUNS,
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train and measure mechanisms side by side, and write a report.

    Runs that DIR holds already are not done again, and a run that was interrupted goes on where it was.

    Runs that failed are tried again.
    """
    config = Comparison(
        attention=tuple(attention),
        tasks=task_texts(tasks, data),
        target=target,
        length=length,
        seeds=seeds,
        model=model,
        training=training,
        workers=workers,
        executor=at_address(executor, address),
        device=device,
        bench=with_bench,
        lengths=whole_numbers("--lengths", lengths),
        timeout=timeout,
    )
    with preparing("reading the task") as tell:
        from subquad.experiments.comparison import plan, run
        from subquad.records import Store
        from subquad.report import comparison_findings
        from subquad.report.page import write_page

        store = Store.at(out)
        if budget is not None or dry_run:
            config, estimate = estimated(config, store, budget=budget, dry_run=dry_run, tell=tell)
            if estimate is not None:
                return show_estimate(estimate, config.training.steps, as_json=as_json)
        planned = plan(config, tell=tell)
    with watching(planned.specs) as observer:
        records = run(planned, config, store, observer=observer)
    with working("writing the report"):
        findings = comparison_findings(planned.document, records)
        page = write_page(findings, store.folder)
        store.share_pages()
    show_comparison(findings, store, page, as_json=as_json)
    end(records)


@app.command(
    epilog=examples(
        "subquad bench performer linear --lengths 1024,4096,16384",
        "subquad bench all --causal --dtype bfloat16 --json",
    )
)
@with_options_of(inputs=None)
def bench(
    attention: Annotated[
        list[str],
        typer.Argument(metavar="[NAME[:option=value,…]]…", help="Mechanisms to time; 'all' takes every one."),
    ] = list(BENCHMARK.attention),  # noqa: B006
    lengths: Annotated[
        list[str], lengths_option("--length", **with_default("Tokens.", *BENCHMARK.lengths))
    ] = [],  # noqa: B006
    inputs: InputsConfig = BENCHMARK.inputs,
    causal: Annotated[
        bool, typer.Option("--causal", help="Causal forms; else bidirectional ones where there are any.")
    ] = BENCHMARK.causal,
    peers: Annotated[
        bool, typer.Option("--peers", help="Time other packages that are installed, in the same turns.")
    ] = BENCHMARK.peers,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes CUDA where it is.")] = (
        BENCHMARK.device
    ),
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.")] = BENCHMARK.timeout,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep records here, and do only what is missing.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time and memory by length, beside torch's fused softmax: exponents, crossovers, parts of the roofline.

    Each mechanism and length has a process of its own, in which both are timed in turns.

    The roofline is what the same products take at the highest rates that this machine reaches.
    """
    config = Benchmark(
        attention=tuple(attention),
        lengths=whole_numbers("--lengths", lengths) or BENCHMARK.lengths,
        inputs=inputs,
        causal=causal,
        peers=peers,
        device=device,
        timeout=timeout,
    )
    with working("reading the request"):
        from subquad.experiments.benchmark import plan, run
        from subquad.records import Store

        planned = plan(config)
    with folder(out) as path, watching(planned.specs) as observer:
        records = run(planned, config, Store(path), observer=observer)
    show_bench(planned.document, records, as_json=as_json)
    end(records)


@app.command(
    epilog=examples(
        "subquad check my_package:Mine", "subquad check 'local:width=8&softmax'", "subquad check --all"
    )
)
def check(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[PACKAGE:CLASS]",
            help="Your mechanism, layer or task, or the name of a known one.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Each known one, a process a core.")] = False,
    as_json: Json = False,
) -> None:
    """Certify a mechanism, a mixture, a whole layer or a task: a line for each check, and what failed."""
    if (name is None) != everything:
        raise ValueError("name one mechanism or task, PACKAGE:CLASS, or give --all")
    from subquad.cli.check import all_names, show, show_all

    made, failed = show_all(all_names(), as_json=as_json) if name is None else show(name, as_json=as_json)
    if as_json:
        print_json({"certificates": dict(made), "failed": failed})
    raise typer.Exit(FAILED if failed else 0)


@app.command(
    "pattern",
    epilog=examples(
        "subquad pattern 'Local(8) | Global(2)'", "subquad pattern 'Strided(8)' --causal --svg a.svg"
    ),
)
def draw_pattern(
    expression: Annotated[
        str, typer.Argument(metavar="EXPR", help="Such as 'Local(8) | Random(2, seed=1)'.")
    ],
    length: Annotated[int, number("Tokens.")] = 64,
    causal: Annotated[bool, typer.Option("--causal", help="Its causal form: EXPR & CAUSAL.")] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as an SVG too.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a sparse pattern: which keys each query sees, and how many.

    Patterns are joined by | (union) and & (intersection), and PerHead(a, b) has one for each head.

    An unknown name is answered with those there are, and wrong arguments with the right ones.
    """
    from subquad.patterns.drawing import Drawing
    from subquad.patterns.grammar import parse
    from subquad.patterns.pattern import CAUSAL
    from subquad.patterns.svg import svg as written

    pattern = parse(expression)
    drawing = Drawing.of(pattern & CAUSAL if causal else pattern, length)
    if svg:
        write_whole(svg, written(drawing).encode())
    show_pattern(drawing, svg, as_json=as_json)


@app.command("list", epilog=examples("subquad list", "subquad list --json"))
def list_known(as_json: Json = False) -> None:
    """Mechanisms and whole layers with their traits and options, and tasks."""
    from subquad import tasks
    from subquad.nn.layers.named import layer_catalog
    from subquad.registry import catalog

    mechanisms = [described(cls) for cls in catalog().values()]
    layers = [described_layer(cls) for cls in layer_catalog().values()]
    known = [described_task(cls) for cls in tasks.catalog().values()]
    if as_json:
        return print_json([*mechanisms, *layers, *known])
    from subquad.cli import tables

    console = Console()
    console.print(tables.mechanisms(mechanisms))
    console.print(tables.layers(layers))
    console.print(tables.options([*mechanisms, *layers]))
    console.print(tables.tasks(known))


@app.command("report", epilog=examples("subquad report runs"))
def write_report(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a comparison.")] = Path("runs"),
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="Which of its comparisons, as DIR/reports/KEY.html is named; the latest by default.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a comparison again, from its records.

    Ends with status 1 while runs are missing or failed.
    """
    from subquad.records import Store
    from subquad.report import findings_in
    from subquad.report.page import write_page

    with working("writing the report"):
        findings = findings_in(out, key)
        page = write_page(findings, out)
    show_comparison(findings, Store(out), page, as_json=as_json)
    end(findings.records, expected=len(findings.records) + findings.missing)


@contextmanager
def folder(path: Path | None) -> Iterator[Path]:
    """That folder, or one that vanishes."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="subquad-") as temporary:
        yield Path(temporary)


def task_texts(named: Sequence[str], schema: Path | None) -> tuple[str, ...]:
    """The tasks with their options as `Comparison` takes them; `schema` is that of one's own data."""
    if schema is None:
        return tuple(named) or COMPARISON.tasks
    return (*(text for text in named if text != OWN), own_task(schema))


def own_task(schema: Path) -> str:
    """The task that a schema describes, with its options."""
    return written(OWN, {"schema": str(schema.absolute())})


def end(records: Sequence["Record"], *, expected: int = 0) -> None:
    """Done only if no run failed, and none of those `expected` is missing."""
    failed = any(record["status"] != "ok" for record in records)
    raise typer.Exit(FAILED if failed or len(records) < expected else 0)
