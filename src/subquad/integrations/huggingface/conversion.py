"""From a model's folder to that of the converted one, with what that lost, won back and saves.

    OUT/                         the model and its tokenizer, for `from_pretrained`
    OUT/conversion.json          what was asked and what came of it
    OUT/recovery.safetensors     the checkpoint of a recovery under way

What was interrupted goes on when the same is asked again, and what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from subquad.config import RecoveryConfig, TextsConfig
from subquad.documents import Damaged, read_json, validated, write_json
from subquad.integrations.huggingface.convert import convert
from subquad.integrations.huggingface.cost import decoding, reading
from subquad.integrations.huggingface.document import ConversionFields
from subquad.integrations.huggingface.interface import NAME
from subquad.integrations.huggingface.layers import attention_layers, converted_layers
from subquad.integrations.huggingface.positions import extend_positions
from subquad.integrations.huggingface.recovery import OnProgress, Stage, recover
from subquad.integrations.huggingface.saved import from_pretrained, load_folder
from subquad.integrations.huggingface.texts import read_texts
from subquad.measure.machine import machine, versions

DOCUMENT, CHECKPOINT = "conversion.json", "recovery.safetensors"
TIMED_LENGTHS = (512, 2048, 8192)
PACKAGES = ("subquad", "torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is to be converted, and how.

    model: a folder with a model of transformers, and its tokenizer where texts are to be read.
    attention: as `convert` takes it, with its options.
    out: the folder for what comes of it.
    only: a pattern of the names of layers to convert.
    positions: so many tokens shall the model read (`extend_positions`). None: as it is.
    table: of texts to recover by. None: weights stay as they are.
    texts: how they are read.
    recovery: steps and learning rates.
    lengths: tokens at which the model is timed. None: those of `TIMED_LENGTHS` that it has positions for.
    device: of torch.
    """

    model: Path
    attention: str
    out: Path
    only: str = "*"
    positions: int | None = None
    table: Path | None = None
    texts: TextsConfig = field(default_factory=TextsConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    lengths: Sequence[int] | None = None
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """What the converted model depends on."""
        recovery = self.table and {
            "table": str(self.table.absolute()),
            "texts": asdict(self.texts),
            "config": asdict(self.recovery),
        }
        return {
            "model": str(self.model.absolute()),
            "attention": self.attention,
            "only": self.only,
            "positions": self.positions,
            "recovery": recovery,
        }


def convert_folder(wanted: Conversion, tell: OnProgress) -> dict[str, Any]:
    """Convert, recover, save and time; the document that says what came of it.

    Raises `ValueError` for folders and tables that cannot be read, a model or mechanism that cannot be
    converted, and a folder `out` that holds anything else.
    """
    path = wanted.out / DOCUMENT
    document = document_of(wanted)
    if "stages" not in document:
        document |= make(wanted, tell)
        write_json(path, document)
        (wanted.out / CHECKPOINT).unlink(missing_ok=True)
    lengths = set(wanted.lengths or ()) - {each["tokens"] for each in document.get("reading", [])}
    if "reading" not in document or lengths:
        document |= measure(wanted, tell)
        write_json(path, document)
    return document


def document_of(wanted: Conversion) -> dict[str, Any]:
    """What the folder says of this conversion, so far that it is asked; `ValueError` for another one."""
    out, path = wanted.out, wanted.out / DOCUMENT
    if path.exists():
        document = read_json(path)
        try:
            validated(ConversionFields, document)
        except ValueError as error:
            raise Damaged(
                f"{str(path)!r} is damaged: {error}; remove it, and its folder is done anew"
            ) from None
        if document["asked"] != wanted.to_json():
            raise ValueError(f"{str(out)!r} holds another conversion: choose another folder")
        return document
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} holds something else already: choose another folder")
    return {"asked": wanted.to_json()}


def make(wanted: Conversion, tell: OnProgress) -> dict[str, Any]:
    """The converted model in its folder, and what it is worth."""
    model, tokenizer, dtype = original(wanted)
    fitting(model, wanted.lengths)
    torch.manual_seed(wanted.texts.seed)
    convert(model, wanted.attention, only=wanted.only)
    if wanted.table is not None and tokenizer is None:
        raise ValueError(f"{str(wanted.model)!r} has no tokenizer, and texts are read with one")
    batches = None
    if wanted.table is not None:
        fitting(model, [wanted.texts.tokens])
        batches = read_texts(wanted.table, tokenizer, wanted.texts)
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_json(wanted.out / DOCUMENT, {"asked": wanted.to_json()})
    stages: list[Stage] = []
    if batches is not None:
        stages = recover(
            model,
            *batches,
            config=wanted.recovery,
            tokenizer=tokenizer,
            path=wanted.out / CHECKPOINT,
            tell=tell,
        )
    model.to(dtype).save_pretrained(wanted.out)
    if tokenizer is not None:
        tokenizer.save_pretrained(wanted.out)
    layers = attention_layers(model)
    return {
        "architecture": type(model).__name__,
        "layers": {name: layer.converted and layer.converted.attention for name, layer in layers.items()},
        "stages": [asdict(stage) for stage in stages],
        "versions": versions(PACKAGES),
    }


def original(wanted: Conversion) -> tuple[Any, Any, torch.dtype]:
    """The model in float32, in which it learns; its tokenizer, if any; the dtype that it had."""
    model: Any
    model, tokenizer = load_folder(wanted.model)
    if hasattr(model.config, NAME):
        raise ValueError(f"{str(wanted.model)!r} is converted already: name the folder that it was made from")
    dtype = model.dtype
    if wanted.positions is not None:
        extend_positions(model, wanted.positions)
        if tokenizer is not None:
            tokenizer.model_max_length = wanted.positions
    return model.float().to(wanted.device), tokenizer, dtype


def measure(wanted: Conversion, tell: OnProgress) -> dict[str, Any]:
    """Time and memory of the model as it was and of the converted one, by length."""
    before, _, dtype = original(wanted)
    if not takes_tokens(before):
        return {"reading": [], "decoding": [], "machine": machine()}
    after: Any = from_pretrained(str(wanted.out))
    models = {"original": before.to(dtype).eval(), "converted": after.to(wanted.device).eval()}
    reads: list[dict[str, Any]] = []
    decodes: list[dict[str, Any]] = []
    lengths = fitting(before, wanted.lengths)
    for done, tokens in enumerate(lengths):
        reads.append({"tokens": tokens, **as_json(reading(models, tokens))})
        if streams(models["converted"]):
            decodes.append({"tokens": tokens, **as_json(decoding(models, tokens))})
        tell("time and memory", (done + 1) / len(lengths))
    return {"reading": reads, "decoding": decodes, "machine": machine()}


def as_json(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What was measured of each model, without the length, which all have in common."""
    return {
        name: {what: value for what, value in asdict(each).items() if what != "tokens"}
        for name, each in measured.items()
    }


def takes_tokens(model: PreTrainedModel) -> bool:
    return model.main_input_name == "input_ids"


def fitting(model: PreTrainedModel, lengths: Sequence[int] | None) -> list[int]:
    """The lengths that a model has positions for. Raises `ValueError` where one was asked that it has not."""
    most = getattr(model.config, "max_position_embeddings", None) or max(lengths or TIMED_LENGTHS)
    if lengths is None:
        return [length for length in TIMED_LENGTHS if length <= most] or [most]
    if max(lengths) > most:
        raise ValueError(
            f"the model has {most:,} positions, and {max(lengths):,} tokens are asked for: extend them"
        )
    return sorted(set(lengths))


def streams(model: PreTrainedModel) -> bool:
    """Whether it generates from states."""
    converted = converted_layers(model).values()
    generates = model.can_generate() and not model.config.is_encoder_decoder
    return generates and all(layer.mechanism.traits.state is not None for layer in converted)
