"""A trained classifier as a folder: its weights in model.safetensors, all else in config.json.

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

from subquad.files import write_whole
from subquad.nn.classifier import ClassifierConfig, SequenceClassifier
from subquad.nn.encoder import EncoderConfig

try:
    import safetensors.torch as safetensors
    from safetensors import SafetensorError
except ImportError as error:
    raise ImportError('exported models need safetensors: pip install "subquad[compare]"') from error

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(model: SequenceClassifier, folder: Path, *, extra: Mapping[str, Any]) -> None:
    """Write the model to `folder`, made if need be, with `extra`, which is JSON, beside it."""
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


def read(folder: Path) -> tuple[SequenceClassifier, dict[str, Any]]:
    """The model in `folder`, in eval mode, and what was saved beside it.

    Raises `ValueError` if the folder is missing, incomplete, damaged, or of a later version.
    """
    try:
        stored = json.loads((folder / CONFIG).read_bytes())
        weights = (folder / WEIGHTS).read_bytes()
        if not isinstance(stored, dict):
            raise ValueError(f"{CONFIG} holds no object")
        if stored["format"] != FORMAT:
            raise ValueError(
                f"it has format {stored['format']!r}, and this version of subquad reads {FORMAT}"
            )
        if stored["weights"] != hashlib.sha256(weights).hexdigest():
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} was written for; save the model again")
        with torch.random.fork_rng(devices=[]):
            model = SequenceClassifier(_config(**stored["model"]))
        tensors = safetensors.load(weights)
        tensors |= {name: tensors[first] for name, first in shared(model).items() if first in tensors}
        model.load_state_dict(tensors, assign=True)  # keeps the dtypes they were saved in
        model.encoder.tie()
        return model.eval(), dict(stored["extra"])
    except OSError as error:
        raise ValueError(f"{folder} holds no exported model: {error.strerror}: {error.filename}") from error
    except KeyError as error:
        raise ValueError(f"{folder} holds no model that can be read: {CONFIG} has no {error}") from error
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no model that can be read: {error}") from error


def shared(model: nn.Module) -> dict[str, str]:
    """The names of tensors that have another name already, and that other: each is saved once."""
    names: dict[Tensor, str] = {}
    tensors = model.state_dict(keep_vars=True).items()
    return {name: names[tensor] for name, tensor in tensors if names.setdefault(tensor, name) != name}


def _config(*, vocabularies: list[int], encoder: dict[str, Any], **rest: int) -> ClassifierConfig:
    return ClassifierConfig(vocabularies=tuple(vocabularies), encoder=EncoderConfig(**encoder), **rest)
