"""How far a training has come, in one file that nothing is unpickled from.

Tensors (weights, the optimiser's moments, random number generators) are safetensors; numbers are JSON in
the same file's header. The file is written whole or not at all, so that a process killed at any moment
leaves the latest complete one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from subquad.files import write_whole

Tensors = dict[str, Tensor]


def write(path: Path, groups: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
    """Write named groups of tensors, and numbers that are JSON."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    write_whole(path, save(tensors, metadata={"numbers": json.dumps(numbers)}))


def read(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """What `write` wrote, on the CPU; None where there is no file, or one that is no checkpoint."""
    groups: dict[str, Tensors] = {}
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            for full in file.keys():  # noqa: SIM118  # not a mapping
                group, name = full.split("/", 1)
                groups.setdefault(group, {})[name] = file.get_tensor(full)
    except (FileNotFoundError, SafetensorError):
        return None
    return groups, numbers


def moments(optimiser: Optimizer) -> Tensors:
    """The optimiser's state as tensors named "<parameter's index>.<what>"."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{what}": value for index, kept in state.items() for what, value in kept.items()}


def load_moments(optimiser: Optimizer, tensors: Tensors) -> None:
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        index, what = name.split(".", 1)
        state.setdefault(int(index), {})[what] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def generators(device: str) -> Tensors:
    """The states of torch's own random number generators."""
    kept = {"cpu": torch.get_rng_state()}
    return kept | {"cuda": torch.cuda.get_rng_state()} if device == "cuda" else kept


def load_generators(tensors: Tensors) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])


def weights(model: nn.Module) -> Tensors:
    """A copy of all parameters and persistent buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
