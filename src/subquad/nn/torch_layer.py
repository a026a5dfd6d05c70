"""What belongs to `torch.nn.MultiheadAttention` and not here: arguments, layers and masks that are refused.

Each refusal names what to do instead. Nothing that torch would heed is dropped without a word.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from subquad.ops.shared.waiting import require
from subquad.torch_internals import child

ARGUMENTS = (  # of torch's constructor, from the third on
    "dropout",
    "bias",
    "add_bias_kv",
    "add_zero_attn",
    "kdim",
    "vdim",
    "batch_first",
    "device",
    "dtype",
)
REMEDY = {  # for arguments of torch's that have no place here
    "kdim": "project keys to embed_dim first",
    "vdim": "project values to embed_dim first",
    "add_bias_kv": "append a learnt token to the input",
    "add_zero_attn": "append a token of zeros to the input",
}
WEIGHTS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
CARRIED = {"bias", "batch_first", "device", "dtype"}  # what torch's layer has and its successor takes from it
AXES = {True: "(batch, time, features)", False: "(time, batch, features)"}  # by batch_first


def mechanism_name(attention: str | float, rest: tuple[Any, ...]) -> str:
    """`attention`, unless the call was meant for torch, whose third argument is dropout.

    `rest` are the positional arguments behind it, which torch would read by their places.
    """
    if not isinstance(attention, str):
        named = [f"{name}={value!r}" for name, value in zip(ARGUMENTS, (attention, *rest), strict=False)]
        why = f"; {no_dropout(attention)}" if attention else ""
        raise ValueError(
            f"the third argument names a mechanism, such as 'softmax', and {attention!r} is none: give those "
            f"of torch's layer by name, {', '.join(named)}{why}"
        )
    if rest:
        raise ValueError(
            f"arguments after {attention!r} are given by name, such as bias=True, and these have none: "
            f"{', '.join(map(repr, rest))}"
        )
    return attention


def own_options(options: dict[str, Any], *, embed_dim: int) -> dict[str, Any]:
    """Without arguments of torch's that say what holds here anyway; those that say more are refused."""
    for name in REMEDY.keys() & options.keys():
        if options[name] not in ((None, embed_dim) if name in ("kdim", "vdim") else (False,)):
            raise ValueError(f"{name}={options[name]!r} is not supported: {REMEDY[name]}")
    return {name: value for name, value in options.items() if name not in REMEDY}


def no_dropout(dropout: Any) -> str:
    return (
        f"dropout={dropout!r} would act on attention weights, which are never formed: set it to 0, and drop "
        "from the layer's output"
    )


def unsupported(theirs: nn.MultiheadAttention) -> list[str]:
    """What this layer of torch's does that no layer here can, each with what to do."""
    problems = []
    if theirs.dropout:
        problems.append(
            f"it drops attention weights, which are never formed (dropout={theirs.dropout}): set its dropout "
            "to 0.0, and drop from its output"
        )
    if not theirs.kdim == theirs.vdim == theirs.embed_dim:
        problems.append(
            f"keys of kdim={theirs.kdim} and values of vdim={theirs.vdim} have weights with no place here: "
            f"project both to embed_dim={theirs.embed_dim} first"
        )
    if theirs.bias_k is not None:
        problems.append(f"add_bias_kv has weights with no place here: {REMEDY['add_bias_kv']}")
    if theirs.add_zero_attn:
        problems.append(f"add_zero_attn is not supported: {REMEDY['add_zero_attn']}")
    return problems


@cache
def watch_assignments(ours: type[nn.Module]) -> None:
    """From now on refuse one of `ours` in the place of a module with the other `batch_first`.

    `parent.self_attn = layer` is the last moment at which the order that the parent uses is known:
    torch's encoder layer keeps no note of it, and would have the new one attend across the batch.
    """

    def check(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if isinstance(module, ours):
            require_same_axes(parent, name, module)

    register_module_module_registration_hook(check)


def require_same_axes(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Raise `ValueError` where `parent.name` is called with the other order of axes."""
    here = getattr(child(parent, name), "batch_first", None)
    if here is not None and here != module.batch_first:
        raise ValueError(
            f"{type(parent).__name__}.{name} takes {AXES[here]}, and this layer {AXES[not here]}: build it "
            f"with batch_first={here}, or call subquad.replace_attention, which sees to it"
        )


def blocked(mask: Tensor, *, name: str) -> Bool[Tensor, "..."]:
    """True where torch's mask, boolean or added to scores, forbids to look."""
    if mask.dtype == torch.bool:
        return mask
    forbidden = mask == -torch.inf
    otherwise = f"{name} may hold 0 and -inf only: give a boolean mask, True where not to look"
    if not mask.is_floating_point():
        raise ValueError(otherwise)
    require((forbidden | (mask == 0)).all(), otherwise)
    return forbidden


def require_causal_mask(attn_mask: Tensor, *, causal: bool, length: int) -> None:
    """Raise `ValueError` unless torch's mask says of a causal layer that it is causal."""
    if not causal:
        raise ValueError(
            "attn_mask is not supported: give padding as key_padding_mask, and for a causal layer build "
            "it with causal=True"
        )
    otherwise = (
        "attn_mask is not the square causal mask, the only one supported: leave it out, since this layer was "
        "built causal, and give padding as key_padding_mask"
    )
    if attn_mask.shape != (length, length):
        raise ValueError(otherwise)
    future = torch.ones_like(attn_mask, dtype=torch.bool).triu(1)
    require((blocked(attn_mask, name="attn_mask") == future).all(), otherwise)


def map_inputs(change: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The three after the change. One tensor stays one, since one product then makes all inputs."""
    queries = change(q)
    keys = queries if k is q else change(k)
    return queries, keys, keys if v is k else change(v)


def axes_swapped(x: Tensor) -> Tensor:
    """(t b m) for (b t m), and back."""
    return x.transpose(0, 1)
