"""`subquad choose`: which attention to take, by what candidates do on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from subquad.cli.commands import OWN, app, end, own_task
from subquad.cli.options import BENCH, RUNS, Json, examples, megabytes, number, option, with_options_of
from subquad.cli.output import announce, show_recommendation
from subquad.cli.progress import watching, working
from subquad.experiments.config import TASK_KINDS, Choice, InputsConfig

__all__ = ["app"]

CHOICE = Choice(length=1024)  # its defaults


@app.command(
    "choose",
    epilog=examples(
        "subquad choose --length 8192",
        "subquad choose --length 4096 --bounded --memory 200MB",
        "subquad choose --data schema.toml --fit --steps 200",
        "subquad choose --length 2048 --kind text --attention linear,local:width=128",
    ),
)
@with_options_of(inputs=BENCH)
def choose_attention(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME[:option=value,…]]",
            help="A task of `subquad list`, for its length and causality, and for --fit.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[int | None, number("Tokens of a sequence, by default the task's.", least=4)] = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="A token may see those before it alone.")
    ] = CHOICE.causal,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Tokens come one at a time: the next one's time decides.")
    ] = CHOICE.streaming,
    bounded: Annotated[
        bool, typer.Option("--bounded", help="The state of a stream may not grow with it.")
    ] = CHOICE.bounded,
    kind: Annotated[
        str, typer.Option(help=f"What probes are to stand for: {', '.join(TASK_KINDS)}.")
    ] = CHOICE.kind,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What a layer may take in training, or the state of its stream: 500MB, 2GB.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:option=value,…]",
            help="Candidates, from the simplest, with commas between them. 'all' measures every one.",
        ),
    ] = list(CHOICE.attention),  # noqa: B006  # typer copies it
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A schema.toml of your own data: the task.", show_default=False),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What is predicted on the task.", show_default=False)
    ] = None,
    with_fit: Annotated[
        bool, typer.Option("--fit", help="Train candidates on the task, in the place of probes.")
    ] = CHOICE.fit,
    steps: Annotated[int, number("Steps of each fit.")] = CHOICE.steps,
    seeds: Annotated[int, number("Fits of each candidate: seeds 0, 1, … .")] = CHOICE.seeds,
    inputs: InputsConfig = CHOICE.inputs,
    device: Annotated[str, option("cpu, cuda or mps; auto takes CUDA where it is.", RUNS)] = CHOICE.device,
    timeout: Annotated[float, option("Seconds that one run may take.", RUNS)] = CHOICE.timeout,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where records go.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Recommend an attention for a length and a need, by what candidates do on this machine.

    Candidates are timed beside torch's fused softmax; those that are faster are trained on probes.

    Runs that DIR holds already are not done again.
    """
    config = Choice(
        length=length,
        causal=causal,
        streaming=streaming,
        bounded=bounded,
        kind=kind,
        memory_mb=None if memory is None else megabytes("--memory", memory),
        attention=tuple(attention),
        task=task_text(task, data),
        target=target,
        fit=with_fit,
        steps=steps,
        seeds=seeds,
        inputs=inputs,
        device=device,
        timeout=timeout,
    )
    with working("reading the request"):
        from subquad.experiments.choice import expected_seconds, plan, run_specs
        from subquad.records import Store
        from subquad.report.recommendation import recommendation_of, shortlist

        planned, store = plan(config), Store(out)
        seconds = expected_seconds(planned)
    announce(planned.document, seconds)
    with watching(planned.measurements) as observer:
        measured = run_specs(planned.measurements, config, store, observer=observer)
    exercises = planned.training(shortlist(planned.document, measured))
    with watching(exercises) as observer:
        trained = run_specs(exercises, config, store, observer=observer)
    records = [*measured, *trained]
    show_recommendation(recommendation_of(planned.document, records), as_json=as_json)
    end(records)


def task_text(task: str | None, schema: Path | None) -> str | None:
    """The task with its options as `Choice` takes it; `schema` is that of one's own data."""
    if schema is None:
        return task
    if task not in (None, OWN):
        raise ValueError(f"a choice is made for one task: give {task!r} or --data, not both")
    return own_task(schema)
