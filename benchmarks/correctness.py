"""Nothing is timed that is not right: ours against the definition in float64, peers against ours.

Where the choice of keys hangs on a comparison of numbers, as in hashing, rounding may decide it otherwise
for a few queries; a hundredth of them may differ.
"""

import copy

import torch
from torch import Tensor

from benchmarks.subjects import inputs, mechanism, tier, tiers
from benchmarks.targets import Row
from subquad.measure.peers import PEERS
from subquad.mechanism import Mechanism

TOKENS = 288  # more than a window, and no power of two
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}  # of the largest number there is
MAX_WRONG = 0.01  # of the queries, for mechanisms that choose
CHOOSE = ("reformer", "routing")
ONE_SEQUENCE = ("linformer", "nystrom-attention")  # peers that see the queries' tokens only


def require_right(row: Row) -> None:
    """Raise `ArithmeticError` where one of our tiers is not what the definition says."""
    ours = mechanism(row, TOKENS, dtype=row.dtype)
    tensors = inputs(ours, TOKENS, dtype=row.dtype)
    oracle = copy.deepcopy(ours).double()
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    expected = oracle.definition(**exact)
    backward = row.operation in ("forward and backward", "training step")
    slopes: tuple[Tensor | None, ...] = ()
    if backward:
        slopes = torch.autograd.grad(expected.square().sum(), list(exact.values()), allow_unused=True)
    for name in tiers():
        with tier(name):
            out = streamed(ours, tensors) if row.operation == "step" else ours(**tensors)
            require_close(f"{row.name} ({name})", out, expected, row)
            if not backward:
                continue
            gradients = torch.autograd.grad(out.square().sum(), list(tensors.values()), allow_unused=True)
        for letter, slope, right in zip(tensors, gradients, slopes, strict=True):
            if slope is not None and right is not None:
                require_close(f"{row.name} ({name}), gradient of {letter}", slope, right, row)


def streamed(ours: Mechanism, tensors: dict[str, Tensor]) -> Tensor:
    """Token by token after a beginning, as when decoding."""
    with torch.inference_mode():
        start = TOKENS - 4
        out, state = ours.step(**{name: x[:, :, :start] for name, x in tensors.items()}, state=None)
        parts = [out]
        for i in range(start, TOKENS):
            out, state = ours.step(**{name: x[:, :, i : i + 1] for name, x in tensors.items()}, state=state)
            parts.append(out)
    return torch.cat(parts, 2)


def require_peer_right(row: Row, name: str) -> None:
    """Raise `ArithmeticError` where a peer's numbers are not finite, or not those that they should be."""
    other = PEERS[name]
    length = 256  # some take no others
    ours = mechanism(row, length)
    tensors = {key: x.detach() for key, x in inputs(ours, length).items()}
    if name in ONE_SEQUENCE:
        tensors = dict.fromkeys(tensors, tensors["q"])
    with torch.inference_mode():
        out = other.attention_like(ours, length)(**tensors)
        expected = ours(**tensors)
    if out.shape != expected.shape or not out.isfinite().all():
        raise ArithmeticError(f"{name} gives {tuple(out.shape)}, or numbers that are not finite")
    if other.agrees:
        require_close(name, out, expected, row)


def require_close(what: str, actual: Tensor, expected: Tensor, row: Row) -> None:
    allowed = TOLERANCE[row.dtype] * expected.abs().amax().item()
    wrong = ((actual - expected).abs().amax(-1) <= allowed).logical_not()  # and so is nan
    if wrong.double().mean() > (MAX_WRONG if row.attention in CHOOSE else 0):
        off = (actual - expected).abs().amax().item()
        raise ArithmeticError(f"{what} is off by {off:.2g}, and {allowed:.2g} is allowed")
