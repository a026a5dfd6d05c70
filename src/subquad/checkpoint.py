"""How far a training has come, in one file that nothing is unpickled from.

Tensors (weights, the optimiser's moments, random number generators) are safetensors; numbers are JSON in
the same file's header, beside the digest of all. The file is written whole or not at all, so that a process
killed at any moment leaves the latest complete one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from subquad.documents import Damaged, parsed
from subquad.files import read_whole, write_whole

Tensors = dict[str, Tensor]


def write(path: Path, groups: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
    """Write named groups of tensors, and numbers that are JSON."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    text = json.dumps(numbers)
    write_whole(path, save(tensors, metadata={"numbers": text, "digest": digest(tensors, text)}))


def read(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """What `write` wrote, on the CPU; None where there is no file. Raises `Damaged` for any other."""
    try:
        content = read_whole(path)
        tensors = load(content)
        header = parsed(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError) as error:
        raise Damaged(f"{str(path)!r} is damaged: {error}") from None
    metadata = header.get("__metadata__", {})
    if metadata.get("digest") != digest(tensors, text := metadata.get("numbers", "")):
        raise Damaged(f"{str(path)!r} is damaged: it is not as it was written")
    groups: dict[str, Tensors] = {}
    for full, tensor in tensors.items():
        group, name = full.split("/", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups, json.loads(text)


def digest(tensors: Tensors, text: str) -> str:
    """Of all that a checkpoint holds."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_alike(tensors: Tensors, own: Tensors, *, name: str) -> None:
    """Raise `ValueError` for tensors of other names or shapes than a model's own."""
    for each in tensors.keys() | own.keys():
        theirs, ours = ((tuple(side[each].shape) if each in side else None) for side in (tensors, own))
        if theirs != ours:
            raise ValueError(f"{name}.{each}: has the shape {theirs}, and in this version {ours}")


def moments(optimiser: Optimizer) -> Tensors:
    """The optimiser's state as tensors named "<parameter's index>.<what>"."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{what}": value for index, values in state.items() for what, value in values.items()}


def load_moments(optimiser: Optimizer, tensors: Tensors) -> None:
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        index, what = name.split(".", 1)
        state.setdefault(int(index), {})[what] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def generators(device: str) -> Tensors:
    """The states of torch's own random number generators."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if device == "cuda" else states


def load_generators(tensors: Tensors) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])


def weights(model: nn.Module) -> Tensors:
    """A copy of all parameters and persistent buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
