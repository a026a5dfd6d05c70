"""Inputs and states held against what a mechanism was built for, before anything is computed.

What does not fit PyTorch may broadcast, and attend over heads; compiled code would read past its end.
"""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Part = type | tuple[torch.dtype, tuple[int, ...]]  # a tuple; or a tensor, by what it is without its batch


def require_inputs(
    mechanism: str,
    positional: tuple[Any, ...],
    named: Mapping[str, Any],
    *,
    widths: Mapping[str, int],
    heads: int,
    cross: bool,
) -> list[Tensor]:
    """The inputs in the order of `widths`; `ValueError` unless each is `(batch, heads, tokens, width)`.

    They have one batch, dtype and device. All but the first go by key, and have one number of tokens; with
    `cross` the first may have another. `valid`, if `named`, is boolean of shape (batch, keys).
    """
    given = [*positional, *(named[name] for name in list(widths)[len(positional) :] if name in named)]
    if len(given) != len(widths):
        names = [name for name in named if name not in ("valid", "state")]
        raise ValueError(
            f"{mechanism!r} takes {', '.join(widths)}; not {len(positional)} inputs by position"
            + (f" and {', '.join(names)} by name" if names else "")
        )
    for name, x in zip(widths, given, strict=True):
        if not isinstance(x, Tensor) or x.ndim != 4:
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise ValueError(
                f"{mechanism!r} got {name} of {found}: inputs are tensors (batch, heads, tokens, width)"
            )
    q = given[0]
    batch, _, queries, _ = q.shape
    keys = given[1 % len(given)].shape[2]
    tokens = queries
    for name, x in zip(widths, given, strict=True):
        if x.shape != (batch, heads, tokens, widths[name]):
            raise ValueError(misfit(mechanism, name, x, batch, heads, tokens, widths[name]))
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{mechanism!r} got {name} in {x.dtype} on {x.device} and q in {q.dtype} on {q.device}: "
                "give all inputs in one dtype on one device"
            )
        tokens = keys
    if q.dtype not in DTYPES:
        raise ValueError(f"{mechanism!r} got inputs in {q.dtype}: convert them to a floating dtype")
    if queries != keys and not cross:
        raise ValueError(
            f"{mechanism!r} got {queries} queries and {keys} keys: this form attends within one sequence; "
            "use a mechanism with the trait `cross`, built with causal=False"
        )
    valid = named.get("valid")
    if valid is not None:
        require_mask(mechanism, valid, (batch, keys), q.device)
    return given


def misfit(mechanism: str, name: str, x: Tensor, batch: int, heads: int, tokens: int, width: int) -> str:
    """What is wrong with the shape of an input, and what to do about it."""
    swapped = x.shape[1] != heads and x.shape[2] == heads and x.shape[3] == width
    remedy = f"; heads and tokens look swapped: give {name}.transpose(1, 2)" if swapped else ""
    wanted = f"(batch, {heads}, tokens, {width})" if name == "q" or swapped else (batch, heads, tokens, width)
    return (
        f"{mechanism!r} got {name} of shape {tuple(x.shape)}: it takes (batch, heads, tokens, width), here "
        f"{wanted}{remedy}"
    )


def require_mask(mechanism: str, valid: Any, shape: tuple[int, int], device: torch.device) -> None:
    """Raise `ValueError` unless `valid` says of each key, on its device, whether it is real."""
    if not isinstance(valid, Tensor):
        found = type(valid).__name__
    elif valid.dtype != torch.bool or valid.shape != shape or valid.device != device:
        found = f"{valid.dtype} of shape {tuple(valid.shape)} on {valid.device}"
    else:
        return
    raise ValueError(
        f"{mechanism!r}: valid must be boolean of shape {shape} (batch, keys) on {device}, True at real "
        f"tokens; not {found}"
    )


def layout(state: Any) -> tuple[Part, ...]:
    """What a state is made of, whatever its batch."""
    return tuple(
        (x.dtype, tuple(x.shape[1:])) if isinstance(x, Tensor) else type(x) for x in flattened(state)
    )


def require_state(
    mechanism: str, state: Any, *, initial: tuple[Part, ...], growing: bool, like: Tensor
) -> None:
    """Raise `ValueError` unless a state is laid out as the `initial` one, and has a row for each of `like`.

    Where states are `growing`, axes that have no size in the initial one may have any.
    """
    for x, own in zip_longest(layout(state), initial):
        if x != own and not (growing and grows(own, x)):
            raise ValueError(
                f"{mechanism!r} got a state with {told(x)} where its own has {told(own)}: give what this "
                "mechanism's `step` returned for inputs in this dtype, or None to begin anew"
            )
    for x in flattened(state):
        if isinstance(x, Tensor) and (x.shape[:1] != like.shape[:1] or x.device != like.device):
            raise ValueError(
                f"{mechanism!r} got inputs of {len(like)} rows on {like.device} and a state with a tensor of "
                f"shape {tuple(x.shape)} on {x.device}: give the state of these rows, on their device"
            )


def flattened(state: Any) -> Iterator[Any]:
    """All tuples of a state, and what is in them, from the outside in."""
    yield state
    if isinstance(state, tuple):
        for part in state:
            yield from flattened(part)


def grows(initial: Part | None, later: Part | None) -> bool:
    """Whether the one tensor may become the other, as tokens are added to it."""
    if not (isinstance(initial, tuple) and isinstance(later, tuple)):
        return False
    (dtype, shape), (later_dtype, later_shape) = initial, later
    same = dtype == later_dtype and len(shape) == len(later_shape)
    return same and all(n in (0, m) for n, m in zip(shape, later_shape, strict=True))


def told(part: Part | None) -> str:
    """A part of a state in words."""
    if isinstance(part, tuple):
        return f"{part[0]} ({', '.join(['batch', *map(str, part[1])])})"
    return "nothing" if part is None else f"{part.__module__}.{part.__qualname__}"
