"""`subquad convert`: another attention for a pretrained model, and what that loses, wins back and saves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from subquad.cli.fidelity import app
from subquad.cli.options import (
    Json,
    examples,
    lengths_option,
    number,
    whole_numbers,
    with_default,
    with_options_of,
)
from subquad.cli.output import print_json
from subquad.cli.progress import preparing, working
from subquad.config import RecoveryConfig, TextsConfig

if TYPE_CHECKING:
    from subquad.report.conversion import Document

__all__ = ["app"]

RECOVERY = "Recovery"  # a panel of the help
PAGE = "report.html"


@app.command(
    "convert",
    epilog=examples(
        "subquad convert MODEL --attention hedgehog --recover reviews.parquet --out converted",
        "subquad convert MODEL --attention 'hedgehog*3+softmax' --recover books.csv --out mixed",
        "subquad convert MODEL --attention linear --positions 4096 --out longer",
    ),
)
@with_options_of(texts=RECOVERY, recovery=RECOVERY)
def convert_model(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A folder with a model of transformers, and its tokenizer."),
    ],
    attention: Annotated[
        str,
        typer.Option(
            metavar="NAME[:option=value,…]",
            help="What its layers attend by; 'performer*3+softmax' goes round the layers.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the converted model and the report.")],
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Names of layers to convert.")] = "*",
    positions: Annotated[
        int | None, number("So many tokens the model shall read: more than it was trained with.")
    ] = None,
    recover: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Texts to train on, Parquet, CSV or JSON lines; without it weights stay.",
            rich_help_panel=RECOVERY,
            show_default=False,
        ),
    ] = None,
    texts: TextsConfig = TextsConfig(),  # noqa: B008  # it is frozen
    recovery: RecoveryConfig = RecoveryConfig(),  # noqa: B008
    lengths: Annotated[
        list[str], lengths_option(**with_default("Tokens of the texts that are timed.", "512, 2048, 8192"))
    ] = [],  # noqa: B006  # typer copies it
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes CUDA where it is.")] = "auto",
    as_json: Json = False,
) -> None:
    """Let a pretrained model attend otherwise, win back what that lost, and say what it saves.

    With --recover mechanisms first learn what softmax attention gave, then all learns to give what it gave.

    FOLDER is for subquad.integrations.huggingface.from_pretrained, and has a report.

    What was interrupted goes on when the same command is given again.
    """
    if recover is None and (texts, recovery) != (TextsConfig(), RecoveryConfig()):
        raise ValueError(
            "options of the recovery are given, and nothing to recover by: name a table, --recover"
        )
    with preparing("loading the model") as tell:
        from subquad.experiments.device import resolve
        from subquad.integrations.huggingface.conversion import Conversion, convert_folder

        document = convert_folder(
            Conversion(
                model=model,
                attention=attention,
                out=out,
                only=only,
                positions=positions,
                table=recover,
                texts=texts,
                recovery=recovery,
                lengths=whole_numbers("--lengths", lengths) or None,
                device=resolve(device),
            ),
            tell,
        )
    with working("writing the report"):
        from subquad.report.conversion import write_conversion

        page = write_conversion(document, out / PAGE)
    if as_json:
        return print_json({**document, "report": str(page)})
    show(document, out, page)


def show(document: "Document", out: Path, page: Path) -> None:
    from subquad.cli import tables
    from subquad.report.conversion import answer

    console = Console()
    for shown in tables.conversion(document):
        console.print(shown)
    sentence, reasons = answer(document)
    for line in (sentence, *reasons, ""):
        console.print(line, markup=False, highlight=False)
    for line in (f"model: {out}", f"report: {page}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
