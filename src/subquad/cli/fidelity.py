"""`subquad fidelity`: how far mechanisms are from softmax attention, on random q, k and v or on a model's."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from subquad.cli.generate import app
from subquad.cli.options import Attention, Json, decimals, examples, number, with_default, with_options_of
from subquad.cli.output import print_json
from subquad.cli.progress import preparing
from subquad.experiments.config import ActivationsConfig, FidelityStudy

__all__ = ["app"]

STUDY = FidelityStudy()  # its defaults
THRESHOLD = 0.1  # that of `measure.layer_fidelity`, which loads torch
PRETRAINED = "Pretrained models"  # a panel of the help


def numbers_option(text: str, default: tuple[float, ...]) -> typer.models.OptionInfo:
    shown = ",".join(f"{value:g}" for value in default)
    return typer.Option(metavar="X[,X,…]", **with_default(text, shown))


@app.command(
    "fidelity",
    epilog=examples(
        "subquad fidelity",
        "subquad fidelity --attention 'performer:features=64|256|1024' --norms 1,2,4,8,16 --cosines 0.5",
        "subquad fidelity --attention all --causal --length 128 --seeds 1 --json",
        "subquad fidelity --model FOLDER --text book.txt --attention performer,hedgehog --length 512",
    ),
)
@with_options_of(activations=None)
def measure_fidelity(
    attention: Attention = list(STUDY.attention),  # noqa: B006  # typer copies it
    activations: ActivationsConfig = STUDY.activations,
    norms: Annotated[
        list[str],
        numbers_option("|q| |k| / sqrt(d), the score of a query and a key that point one way.", STUDY.norms),
    ] = [],  # noqa: B006  # typer copies it
    cosines: Annotated[
        list[str], numbers_option("Between a query and the keys that it matches.", STUDY.cosines)
    ] = [],  # noqa: B006  # typer copies it
    causal: Annotated[
        bool, typer.Option("--causal", help="Causal forms, beside causal softmax.")
    ] = STUDY.causal,
    seeds: Annotated[
        int, number("Draws of the activations, and of what is random in a mechanism.")
    ] = STUDY.seeds,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Of transformers, with its tokenizer.", rich_help_panel=PRETRAINED
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What it reads, --length tokens.", rich_help_panel=PRETRAINED),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(help="The error up to which a layer bears the conversion.", rich_help_panel=PRETRAINED),
    ] = THRESHOLD,
    as_json: Json = False,
) -> None:
    """How far mechanisms are from softmax attention on the same q, k and v.

    On random ones by norm and angle, or, with --model and --text, on those of a pretrained model's layers,
    head by head. By their outputs, and by their weights: KL, lost mass, entropy and effective rank.

    A mechanism takes part that needs q, k and v alone; what it would learn is as it is initialised.
    """
    study = FidelityStudy(
        attention=tuple(attention),
        activations=activations,
        norms=decimals("--norms", norms) if norms else STUDY.norms,
        cosines=decimals("--cosines", cosines) if cosines else STUDY.cosines,
        causal=causal,
        seeds=seeds,
    )
    if model is not None or text is not None:
        return measure_model(study, model, text, threshold=threshold, as_json=as_json)
    if threshold != THRESHOLD:
        raise ValueError("--threshold is of the layers of a model: name one with --model, or leave it out")
    with preparing("reading the request", resumes=False) as tell:
        from subquad.cli import fidelity_tables
        from subquad.experiments.fidelity import by_norm_and_angle

        rows = by_norm_and_angle(study, tell=tell)
    if as_json:
        return print_json({"study": asdict(study), "rows": [asdict(row) for row in rows]})
    console = Console()
    for shown in fidelity_tables.by_norm_and_angle(rows):
        console.print(shown)
    for line in fidelity_tables.key(rows):
        console.print(line, markup=False, highlight=False)


def measure_model(
    study: FidelityStudy, model: Path | None, text: Path | None, *, threshold: float, as_json: bool
) -> None:
    """Layer by layer, on what a pretrained model makes of a text."""
    if model is None or text is None:
        raise ValueError("--model and --text go together: a model of transformers, and what it reads")
    wanted = study.activations
    random = replace(
        study,
        attention=STUDY.attention,
        seeds=STUDY.seeds,
        activations=replace(wanted, length=STUDY.activations.length),
    )
    if random != STUDY:
        raise ValueError(
            "--norms, --cosines, --clusters, --heads, --head-dim and --causal are of random q, k and v: "
            "leave them out, for a model has its own"
        )
    with preparing("loading the model", resumes=False) as tell:
        from subquad.cli import fidelity_tables
        from subquad.experiments.fidelity import by_layer
        from subquad.integrations.huggingface.fidelity import activations, read_model

        layers = activations(*read_model(model, text, tokens=wanted.length))
        found = by_layer(study, layers, threshold=threshold, tell=tell)
    if as_json:
        return print_json({"threshold": threshold, "rows": [asdict(each) for each in found]})
    console = Console()
    for each in found:
        console.print(fidelity_tables.layers(each))
        for shown in fidelity_tables.heads(each):
            console.print(shown)
        console.print(fidelity_tables.verdict(each), markup=False, highlight=False)
