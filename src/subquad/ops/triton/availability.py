"""Whether Triton kernels may serve a card: decided once for each, from versions, before anything is compiled.

Triton has compiled some products wrongly without a word, on some cards and in some versions. So kernels serve
by themselves where `pytest -m cuda` has passed on that card with that version, and elsewhere on request.
"""

import os
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.ops.backends import wanted

SWITCH = "SUBQUAD_TRITON"
OLDEST = (3, 6)
PROVEN: frozenset[tuple[int, tuple[int, ...]]] = frozenset()  # major capability, version: none has run yet
ARCHITECTURES = {8: 80, 9: 90}  # by major capability: those that tables of block sizes have
BLACKWELL = "; Triton adds two products of a loop's round wrongly there (triton issue 10821)"
MOST_HEADS = 65535  # of all sequences: programs along an axis of a grid
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


class Verdict(NamedTuple):
    """Why kernels do not serve a card; None: they do. `on_request`: whether asking for them overrules it."""

    reason: str | None
    on_request: bool = False


def why_not(first: Tensor, *inputs: Tensor | None) -> str | None:
    """Why kernels cannot take these inputs, which must be of one dtype and on one card; None: they can."""
    if first.dtype not in PRECISIONS:
        return f"it takes float32 and half precision, not {first.dtype}"
    for x in inputs:
        if x is not None and (x.dtype != first.dtype or x.device != first.device):
            return f"it takes inputs alike, not {first.dtype} beside {x.dtype} on {x.device}"
    if first.is_cuda:
        verdict = of_capability(torch.cuda.get_device_capability(first.device))
        return None if verdict.on_request and wanted() == "triton" else verdict.reason
    if first.is_cpu and interpreted() and wanted() == "triton":
        return None
    return f"it takes tensors on CUDA, not on {first.device.type}"


@cache
def of_capability(capability: tuple[int, int]) -> Verdict:
    """Whether kernels serve cards of this compute capability."""
    if os.environ.get(SWITCH) == "0":
        return Verdict(f"{SWITCH}=0 switches the kernels off")
    if torch.version.hip:
        return Verdict("its kernels are compiled for NVIDIA's cards alone")
    major, card = capability[0], f"cards of compute capability {'.'.join(map(str, capability))}"
    if major not in ARCHITECTURES:
        return Verdict(f"it has no kernels for {card}{BLACKWELL if major == 10 else ''}")
    found = version()
    if isinstance(found, str):
        return Verdict(found)
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Verdict(f"Triton {shown(found)} is too old: pip install 'triton>={oldest}'")
    if (major, found) in PROVEN or os.environ.get(SWITCH) == "1":
        return Verdict(None)
    remedy = f"{SWITCH}=1 or using('triton') takes it all the same, `pytest -m cuda` tests it"
    return Verdict(f"it is unproven on {card} with Triton {shown(found)}: {remedy}", on_request=True)


@cache
def version() -> tuple[int, ...] | str:
    """Triton's version, or why there is none."""
    try:
        text = import_module("triton").__version__
    except ImportError as error:
        return f"Triton cannot be loaded ({error}): pip install 'subquad[cuda]'"
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


def shown(found: tuple[int, ...]) -> str:
    return ".".join(map(str, found))


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels on the CPU, for tests; it looks when it is loaded."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def in_use() -> str:
    """What computes on this machine's CUDA card, and why."""
    if not torch.cuda.is_available():
        return "PyTorch finds no card"
    reason = of_capability(torch.cuda.get_device_capability()).reason
    found = version()
    return f"torch: {reason}" if reason or isinstance(found, str) else f"triton: {shown(found)}"
