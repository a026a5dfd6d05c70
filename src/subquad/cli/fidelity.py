"""`subquad fidelity`: how far mechanisms are from softmax attention, on random q, k and v."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from subquad.cli.generate import app
from subquad.cli.options import Attention, Json, decimals, examples, number, with_options_of
from subquad.cli.output import print_json
from subquad.cli.progress import preparing
from subquad.experiments.config import ActivationsConfig, FidelityStudy

__all__ = ["app"]

STUDY = FidelityStudy()  # its defaults


def numbers_option(text: str, default: tuple[float, ...]) -> typer.models.OptionInfo:
    shown = ",".join(f"{value:g}" for value in default)
    return typer.Option(metavar="X[,X,…]", help=f"{text} {escape(f'[default: {shown}]')}", show_default=False)


@app.command(
    "fidelity",
    epilog=examples(
        "subquad fidelity",
        "subquad fidelity --attention 'performer:features=64|256|1024' --norms 1,2,4,8,16 --cosines 0.5",
        "subquad fidelity --attention all --causal --length 128 --seeds 1 --json",
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
    as_json: Json = False,
) -> None:
    """How far mechanisms are from softmax attention on the same random q, k and v, by norm and angle.

    By their outputs, and by their weights: KL, lost mass, entropy and effective rank.

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
