"""`subquad generate`: text from a trained model, as it comes."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from subquad.cli.choose import app
from subquad.cli.options import Json, examples, number, with_options_of
from subquad.cli.output import print_json
from subquad.cli.progress import INTERRUPTED
from subquad.config import SamplingConfig

if TYPE_CHECKING:
    from subquad.experiments.generation import TextStream
    from subquad.experiments.language import LanguageModel

__all__ = ["app"]

SAMPLING, BEAMS = "Sampling", "Beam search"  # panels of the help
DEFAULTS = SamplingConfig()

CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
SHOWN = {**CONTROLS, ord("\r"): ""}  # on a terminal, which must not obey what a model says


@app.command(
    "generate",
    epilog=examples(
        "subquad generate runs/models/0123456789abcdef --prompt 'It was' --tokens 400",
        "subquad generate runs/models/0123456789abcdef --temperature 0.7 --top-p 0.95 --samples 3",
        "subquad generate runs/models/0123456789abcdef --prompt-file a.txt --stop . --beams 4 --json",
    ),
)
@with_options_of(sampling=SAMPLING)
def generate_text(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="DIR/models/KEY, as a comparison prints it."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What it goes on from; by default a document begins.", show_default=False
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same, in a file.", show_default=False)
    ] = None,
    tokens: Annotated[int, number("Bytes after the prompt at most.")] = 400,
    stop: Annotated[
        list[str], typer.Option(metavar="TEXT", help="End after this text; several times: after any.")
    ] = [],  # noqa: B006  # typer copies it
    samples: Annotated[int, number("Texts.")] = 1,
    sampling: SamplingConfig = DEFAULTS,
    beams: Annotated[
        int, number("Beams of a search for the likeliest text; 0: draw one.", panel=BEAMS, least=0)
    ] = 0,
    alpha: Annotated[
        float,
        typer.Option(
            min=0, help="Likely is log p / length ** alpha; 0 favours short texts.", rich_help_panel=BEAMS
        ),
    ] = 0.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps; auto takes CUDA where it is.")] = "auto",
    as_json: Json = False,
) -> None:
    """Generate text with a model that `subquad compare language` has trained, and print it as it comes.

    How fast it came and how large the state was stands on standard error.
    """
    text = prompt_of(prompt, prompt_file)
    if beams and (samples > 1 or sampling != DEFAULTS):
        raise ValueError(
            "a beam search draws nothing: leave out --beams, or --samples and what is of sampling"
        )
    if alpha and not beams:
        raise ValueError(f"--alpha {alpha:g} is of a beam search: give --beams too")
    with Console(stderr=True).status("reading the model"):
        model = language_model(folder, device)
    if beams:
        with Console(stderr=True).status("searching"):
            began = time.perf_counter()
            (found,) = model.search([text], tokens=tokens, beams=beams, alpha=alpha, stop=stop)
            seconds = time.perf_counter() - began
        document = {"texts": [each._asdict() for each in found], "seconds": seconds}
        return print_json(document) if as_json else print_piece(f"{found[0].text}\n")
    document = streamed(
        model.stream([text], tokens=tokens, sampling=sampling, stop=stop, samples=samples), quiet=as_json
    )
    if as_json:
        print_json(document)
    else:
        Console(stderr=True, highlight=False).print(figures(document), markup=False, soft_wrap=True)
    if document["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def streamed(stream: "TextStream", *, quiet: bool) -> dict[str, Any]:
    """What has come by the end, or by Ctrl-C; unless `quiet` the first text is printed as it comes."""
    from subquad.measure.stream import state_bytes

    parts, interrupted, began = [], False, time.perf_counter()
    if not quiet:
        print_piece(heading(1, len(stream.lengths)))
    try:
        for pieces in stream:
            parts.append(pieces)
            if not quiet:
                print_piece(pieces[0])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if not quiet:
            print_piece("\n")
    seconds = time.perf_counter() - began
    texts = ["".join(pieces) for pieces in zip(*parts, strict=True)]
    if not quiet:
        for place, text in enumerate(texts[1:], 2):
            print_piece(f"\n{heading(place, len(texts))}{text}\n")
    return {
        "texts": [{"text": text, "tokens": n} for text, n in zip(texts, stream.lengths, strict=False)],
        "seconds": seconds,
        "tokens_per_second": sum(stream.lengths) / seconds,
        "state_bytes": state_bytes(stream.decoder.state),
        "interrupted": interrupted,
    }


def heading(place: int, count: int) -> str:
    """What stands above each of several texts."""
    return f"--- {place} of {count}\n" if count > 1 else ""


def figures(document: dict[str, Any]) -> str:
    tokens, rate = sum(text["tokens"] for text in document["texts"]), document["tokens_per_second"]
    return (
        f"{'interrupted after ' * document['interrupted']}{tokens:,} tokens in {document['seconds']:.2f} s: "
        f"{rate:,.0f} tokens per second; state {document['state_bytes'] / 1e3:,.1f} kB"
    )


def print_piece(text: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(text.translate(SHOWN) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def prompt_of(text: str | None, file: Path | None) -> str | bytes:
    if text is not None and file is not None:
        raise ValueError(f"give --prompt {text!r} or --prompt-file {str(file)!r}, not both")
    if file is None:
        return text or ""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"--prompt-file {str(file)!r} cannot be read: {error.strerror}") from None


def language_model(folder: Path, device: str) -> "LanguageModel":
    """The model in the folder, on the device. Raises `ValueError` where it is none of texts."""
    from subquad.experiments.device import resolve
    from subquad.experiments.language import LanguageModel
    from subquad.experiments.predictor import load_model

    model = load_model(folder)
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"{str(folder)!r} holds a model of the task {model.fit['data']['task']!r}, and one of texts "
            "generates: train it with `subquad compare language`"
        )
    model.model.to(resolve(device))
    return model
