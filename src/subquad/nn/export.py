"""A trained model as a folder: its weights in model.safetensors, all else in config.json.

Nothing is pickled, so a folder from anywhere can be read without running code from it. The config holds the
digest of the weights and is written last: a folder is whole, or is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import read_json, validated
from subquad.files import read_whole, write_whole
from subquad.nn.model import SequenceModel, SequenceModelConfig

try:
    import safetensors.torch as safetensors
    from safetensors import SafetensorError
except ImportError as error:
    raise ImportError('exported models need safetensors: pip install "subquad[compare]"') from error

FORMAT = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Stored(TypedDict):
    """What config.json holds."""

    format: int
    weights: str  # their digest
    model: SequenceModelConfig
    extra: dict[str, Any]


def save(model: SequenceModel, folder: Path, *, extra: Mapping[str, Any]) -> None:
    """Write the model to a folder: its weights, and its config with whatever else is to stand there.

    folder: made if need be; an older model in it is replaced.
    extra: JSON, which `read` gives back.
    """
    twins = shared(model)
    tensors = model.state_dict().items()
    weights = safetensors.save({name: x.contiguous() for name, x in tensors if name not in twins})
    config = {
        "format": FORMAT,
        "weights": hashlib.sha256(weights).hexdigest(),
        "model": asdict(model.config),
        "extra": dict(extra),
    }
    text = json.dumps(config, indent=2, allow_nan=False)
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / CONFIG, text.encode())


def read(folder: Path) -> tuple[SequenceModel, dict[str, Any]]:
    """The model in `folder`, in eval mode, and what was saved beside it.

    Raises `ValueError` if the folder is missing, incomplete, damaged, or of a later version.
    """
    try:
        stored = read_json(folder / CONFIG)
        weights = read_whole(folder / WEIGHTS)
        if stored.get("format") != FORMAT:
            raise ValueError(
                f"it has format {stored.get('format')!r}, and this version of subquad reads {FORMAT}"
            )
        if stored.get("weights") != hashlib.sha256(weights).hexdigest():
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} was written for; save the model again")
        config = validated(Stored, stored, extra="forbid")["model"]
        tensors = safetensors.load(weights)
        check_sizes(config, tensors)
        with torch.random.fork_rng(devices=[]):
            model = SequenceModel(config)
        assign(model, tensors)
        return model.eval(), stored["extra"]
    except OSError as error:
        raise ValueError(f"{folder} holds no exported model: {error.strerror}: {error.filename}") from error
    except (ValueError, TypeError, OverflowError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no model that can be read: {error}") from error


def check_sizes(config: SequenceModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` or `RuntimeError` where a model of this config has other weights than these.

    Nothing of the config's sizes is allocated for it, which may be anything.
    """
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")}
    if config.encoder.depth != len(blocks):
        raise ValueError(f"depth is {config.encoder.depth}, and there are weights of {len(blocks)} blocks")
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            skeleton = SequenceModel(config)
    except RuntimeError:  # a mechanism that must see its numbers
        return
    assign(skeleton, tensors)


def assign(model: SequenceModel, tensors: Mapping[str, Tensor]) -> None:
    """Let these be the weights, in the dtypes they were saved in; `RuntimeError` where they do not fit."""
    twins = {name: tensors[first] for name, first in shared(model).items() if first in tensors}
    model.load_state_dict({**tensors, **twins}, assign=True)
    model.encoder.tie()


def shared(model: nn.Module) -> dict[str, str]:
    """The names of tensors that have another name already, and that other: each is saved once."""
    names: dict[Tensor, str] = {}
    tensors = model.state_dict(keep_vars=True).items()
    return {name: names[tensor] for name, tensor in tensors if names.setdefault(tensor, name) != name}
