"""What every mechanism does alike with its inputs: checks them, clears their padding, keeps autocast off.

PyTorch may broadcast what does not fit, or attend over heads; compiled code would read past its end. Every
call comes through here, so that what is in the way of one that fits is as little as can be.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FLOAT_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

Layout = tuple[type | torch.dtype, list[Any]]  # of a tuple, and the layouts in it; of a tensor, and its sizes


def require_inputs(
    mechanism: str,
    positional: tuple[Any, ...],
    named: Mapping[str, Any],
    *,
    widths: Mapping[str, int],
    heads: int,
    cross: bool,
) -> Sequence[Tensor]:
    """The inputs in the order of `widths`; `ValueError` unless each is `(batch, heads, tokens, width)`.

    They have one batch, dtype and device. All but the first go by key, and have one number of tokens; with
    `cross` the first may have another. `valid`, if `named`, is boolean of shape (batch, keys).
    """
    inputs = positional if len(positional) == len(widths) else in_order(mechanism, positional, named, widths)
    for x in inputs:
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise ValueError(misfit(mechanism, inputs, widths, heads))
    q = inputs[0]
    batch, _, queries, _ = q.shape
    keys = inputs[1 % len(inputs)].shape[2]
    tokens, dtype, device = queries, q.dtype, q.device
    for x, width in zip(inputs, widths.values(), strict=True):
        if x.shape != (batch, heads, tokens, width) or x.dtype is not dtype or x.device != device:
            raise ValueError(misfit(mechanism, inputs, widths, heads))
        tokens = keys
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"{mechanism!r} got inputs in {dtype}: convert them to a floating dtype")
    if queries != keys and not cross:
        raise ValueError(
            f"{mechanism!r} got {queries} queries and {keys} keys: this form attends within one sequence; "
            "use a mechanism with the trait `cross`, built with causal=False"
        )
    valid = named.get("valid")
    if valid is not None:
        require_mask(mechanism, valid, (batch, keys), device)
    return inputs


def in_order(
    mechanism: str, positional: tuple[Any, ...], named: Mapping[str, Any], widths: Mapping[str, int]
) -> list[Any]:
    """What was given by position and by name, in the order of `widths`."""
    inputs = [*positional, *(named[name] for name in [*widths][len(positional) :] if name in named)]
    if len(inputs) != len(widths):
        names = [name for name in named if name not in ("valid", "state", "in_place")]
        raise ValueError(
            f"{mechanism!r} takes {', '.join(widths)}; not {len(positional)} inputs by position"
            + (f" and {', '.join(names)} by name" if names else "")
        )
    return inputs


def misfit(mechanism: str, inputs: Sequence[Any], widths: Mapping[str, int], heads: int) -> str:
    """What is wrong with the first input that does not fit, and what to do about it."""
    q, rows, keys = inputs[0], "batch", "tokens"  # words until an input has said how many
    for index, (name, x) in enumerate(zip(widths, inputs, strict=True)):
        subject = f"{mechanism!r} got {name}"
        if not isinstance(x, Tensor) or x.ndim != 4:
            actual = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            return f"{subject} of {actual}: inputs are tensors (batch, heads, tokens, width)"
        wanted = (rows, heads, keys, widths[name])
        if any(n != size and not isinstance(n, str) for n, size in zip(wanted, x.shape, strict=True)):
            swapped = x.shape[1] != heads and x.shape[2:] == (heads, widths[name])
            remedy = f"; heads and tokens look swapped: give {name}.transpose(1, 2)" if swapped else ""
            return (
                f"{subject} of shape {tuple(x.shape)}: it takes (batch, heads, tokens, width), here "
                f"({', '.join(map(str, wanted))}){remedy}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            return (
                f"{subject} in {x.dtype} on {x.device} and q in {q.dtype} on {q.device}: give all inputs in "
                "one dtype on one device"
            )
        rows, keys = x.shape[0], x.shape[2] if index else keys
    raise AssertionError("all inputs fit")


def require_mask(mechanism: str, valid: Any, shape: tuple[int, int], device: torch.device) -> None:
    """Raise `ValueError` unless `valid` says of each key, on its device, whether it is real."""
    if not isinstance(valid, Tensor):
        actual = type(valid).__name__
    elif valid.dtype != torch.bool or valid.shape != shape or valid.device != device:
        actual = f"{valid.dtype} of shape {tuple(valid.shape)} on {valid.device}"
    else:
        return
    raise ValueError(
        f"{mechanism!r}: valid must be boolean of shape {shape} (batch, keys) on {device}, True at real "
        f"tokens; not {actual}"
    )


def declared_widths(inputs: type) -> dict[str, int | None]:
    """The width of each input of a NamedTuple, by the last axis of its shape; None for that of a head."""
    last = {name: shape.dim_str.split()[-1] for name, shape in inputs.__annotations__.items()}
    return {name: int(axis) if axis.isdigit() else None for name, axis in last.items()}


def layout(state: Any) -> Layout:
    """How a state is made, whatever its batch."""
    if isinstance(state, tuple):
        return type(state), [layout(x) for x in state]
    return state.dtype, [*state.shape][1:]


def require_state(mechanism: str, state: Any, expected: Layout, growing: bool, like: Tensor) -> None:
    """Raise `ValueError` unless a state has the `expected` layout, with a row for each of `like`.

    Where states are `growing`, axes of size 0 in that layout may have any.
    """
    kind, parts = expected
    if isinstance(state, Tensor) and state.dtype is kind and state.ndim:
        rows, *sizes = state.shape
        if sizes == parts or (growing and grows(parts, sizes)):
            if rows == like.shape[0] and state.device == like.device:
                return
            raise ValueError(
                f"{mechanism!r} got inputs of {len(like)} rows on {like.device} and a state of {rows} rows "
                f"on {state.device}: give the state of these rows, on their device, or None to begin anew"
            )
    elif type(state) is kind and len(state) == len(parts):
        for x, part in zip(state, parts, strict=True):
            require_state(mechanism, x, part, growing, like)
        return
    actual = f"{state.dtype} {tuple(state.shape)}" if isinstance(state, Tensor) else type(state)
    wanted = f"{len(parts)} tensors in {kind}" if isinstance(kind, type) else f"{kind} {('batch', *parts)}"
    raise ValueError(
        f"{mechanism!r} got a state with {actual} where its own has {wanted}: give what its `step` returned "
        "for inputs in this dtype, or None to begin anew"
    )


def require_writable(mechanism: str, state: Any) -> None:
    """Raise `ValueError` where gradients may flow through a state, which must then stay as it is."""
    if torch.is_grad_enabled() or needs_grad(state):
        raise ValueError(
            f"{mechanism!r} cannot write its state in place where gradients may flow through it: call `step` "
            "under torch.no_grad() with a state that was made there, or leave out in_place"
        )


def needs_grad(state: Any) -> bool:
    return any(map(needs_grad, state)) if isinstance(state, tuple) else state.requires_grad


def overwrite(state: Any, after: Any) -> Any:
    """The `state`, with what comes `after` it in its tensors, unless it stands there already."""
    if isinstance(state, tuple):
        for x, y in zip(state, after, strict=True):
            overwrite(x, y)
    elif after is not state:
        state.copy_(after)
    return state


def grows(sizes: list[int], later: list[int]) -> bool:
    """Whether a tensor of these sizes may have the later ones, once there are tokens."""
    fixed = [m if n else 0 for n, m in zip(sizes, later, strict=False)]
    return len(sizes) == len(later) and fixed == sizes


def zero_padding(
    valid: Bool[Tensor, "b s"] | None,
    q: Float[Tensor, "b h t d"],
    *keyed: Float[Tensor, "b h s _"],
) -> tuple[Float[Tensor, "b h _ _"], ...]:
    """`q` and the tensors that go by key, with zeros for what stands in padding, NaN and gradients too.

    Masking weights afterwards would not do: 0 * NaN is NaN, in the product and in its gradient. A query
    is only touched where it is not finite, for in cross-attention `valid` says nothing about queries.
    """
    if valid is None:
        return q, *keyed
    padding = ~valid[:, None, :, None]
    if q.shape[2] == valid.shape[1]:
        q = q.masked_fill(padding & ~q.isfinite().all(-1, keepdim=True), 0)
    return q, *(x.masked_fill(padding, 0) for x in keyed)


def no_autocast(x: Tensor) -> Any:
    """A context in which `torch.autocast` does not narrow matrix products on the device of `x`."""
    device = x.device.type
    narrows = device != "meta" and torch.is_autocast_enabled(device)  # of which there is none on meta
    return torch.autocast(device, enabled=False) if narrows else nullcontext()
