"""Mechanisms in vision transformers of `timm`.

import subquad.integrations.timm as vision

vision.convert(model, "performer", features=256)

A layer of timm's makes queries, keys and values, calls torch's `scaled_dot_product_attention` once, and goes
on from what that returns. Here that call reaches the layer's mechanism, and everything around it stays
timm's: norms of queries and keys, rotary positions, gates, keys that heads share. A converted layer has a
class that is ours and timm's both, and a submodule `subquad`, which is the mechanism.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from subquad.integrations.converted import (
    ConvertedAttention,
    SharedKeys,
    SharedValues,
    as_softmax,
    build_mechanisms,
)
from subquad.integrations.source import forward_source
from subquad.mechanism import Outputs, Queries, Valid
from subquad.ops.shared.waiting import require

M = TypeVar("M", bound=nn.Module)

# that attend by one call of softmax attention, among all tokens: read in timm 1.0.31
CONVERTIBLE = {
    *("timm.layers.attention.Attention", "timm.layers.attention.AttentionRope"),
    *("timm.models.vision_transformer.ParallelScalingBlock", "timm.models.eva.EvaAttention"),
    *("timm.models.beit.Attention", "timm.models.gemma4_vit.Gemma4Attention", "timm.models.volo.Attention"),
    *("timm.models.metaformer.Attention", "timm.models.fastvit.Attention"),
    "timm.models.visformer.Attention",
}

# from one token, or a few that are learnt, to all; and what weighs a convolution's channels
NOT_AMONG_TOKENS = {
    *("AttentionPoolLatent", "AttentionPoolPrr", "AttentionPool2d", "RotAttentionPool2d"),
    *("SimPool1d", "SimPool2d", "ClassAttn", "ClassAttention", "CrossAttention"),
    *("GlobalContext", "RadixSoftmax", "SplitAttn", "SelectiveKernelAttn"),
}

# why others cannot be converted, by the names of their classes
OTHERWISE = {
    "it attends within windows, in time linear in tokens as it is": {
        *("WindowAttention", "WindowMultiHeadAttention", "WindowAttentionGlobal", "LocallyGroupedAttn"),
        *("MaskUnitAttention", "HaloAttn"),
    },
    "it adds a bias to scores by position, which a mechanism would ignore": {
        *("RelPosAttention", "BottleneckAttn", "AttentionDownsample"),
    },
    "it subtracts one attention from another": {"DiffAttention", "DiffParallelScalingBlock"},
    "it mixes the weights of its heads, which a mechanism never forms": {"TalkingHeadAttn"},
    "it attends between channels, in time linear in tokens as it is": {
        *("XCA", "CrossCovarianceAttn", "ChannelAttention", "ChannelAttentionV2"),
    },
}
LEAVE = "leave it out by a pattern, only=…, or take a model whose layers attend as those of ViT do"


@dataclass(frozen=True)
class TimmAttention:
    """A layer that attends."""

    name: str
    module: nn.Module

    @property
    def rotary(self) -> bool:
        """Whether queries and keys turn with their positions where the model says so."""
        return any(name.startswith("rope") for name in inspect.signature(self.kind.forward).parameters)

    @property
    def kind(self) -> type[nn.Module]:
        """Timm's class."""
        return type(self.module).before if isinstance(self.module, ConvertedLayer) else type(self.module)

    @property
    def heads(self) -> int:
        return self._size("num_heads")

    @property
    def head_dim(self) -> int:
        if hasattr(self.module, "head_dim"):
            return self._size("head_dim")
        return self.module.get_parameter("qkv.weight").shape[0] // (3 * self.heads)

    def unsupported(self) -> Iterator[str]:
        """What softmax does in this layer, and no mechanism would."""
        if f"{self.kind.__module__}.{self.kind.__qualname__}" not in CONVERTIBLE:
            own = f"a {self.kind.__name__} attends by code of its own, which would ignore a mechanism"
            reasons = (reason for reason, names in OTHERWISE.items() if self.kind.__name__ in names)
            yield f"{next(reasons, own)}: {LEAVE}"
        elif getattr(self.module, "relative_position_bias_table", None) is not None:
            yield f"it adds a bias to scores by position, which a mechanism would ignore: {LEAVE}"
        if (dropout := getattr(self.module, "attn_drop", None)) and getattr(dropout, "p", 0.0):
            yield (
                f"it drops attention weights, which are never formed (attn_drop of {dropout.p}): set that to "
                "0, or make the model with attn_drop_rate=0.0"
            )

    def _size(self, name: str) -> int:
        size = getattr(self.module, name)
        assert isinstance(size, int), name
        return size


class ConvertedLayer(nn.Module):
    """What a converted layer is besides one of timm's, whose attention then is that of `subquad`."""

    before: ClassVar[type[nn.Module]]
    subquad: ConvertedAttention

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        asked: list[ConvertedAttention] = []
        with Attending(self.subquad, asked):
            out = super().forward(*inputs, **named)
        assert asked == [self.subquad], f"{self.before.__name__} has attended {len(asked)} times"
        return out

    @property
    def fused_attn(self) -> bool:
        """Whether timm's code calls attention as one operator, which it does not where weights are wanted."""
        return True

    @fused_attn.setter
    def fused_attn(self, fused: bool) -> None:
        if not fused:
            raise ValueError(
                "attention weights are never formed in a converted layer: take the mechanism out first, "
                "subquad.integrations.timm.restore(model)"
            )

    def __reduce__(self) -> tuple[Callable[..., nn.Module], tuple[type[nn.Module]], dict[str, Any]]:
        return new_layer, (self.before,), self.__dict__


@cache
def converted_kind(before: type[nn.Module]) -> type[ConvertedLayer]:
    """The class of layers that were of class `before`."""
    named = {"before": before, "__module__": before.__module__, "__qualname__": before.__qualname__}
    return type(before.__name__, (ConvertedLayer, before), named)


def new_layer(before: type[nn.Module]) -> nn.Module:
    """One without contents, for whoever copies a layer or reads it from elsewhere."""
    kind = converted_kind(before)
    return kind.__new__(kind)


class Attending(TorchFunctionMode):
    """Within, whatever calls softmax attention is given that of a mechanism, which `asked` then holds."""

    def __init__(self, ours: ConvertedAttention, asked: list[ConvertedAttention]) -> None:
        super().__init__()
        self.ours = ours
        self.asked = asked

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.asked.append(self.ours)
        return attend_by(self.ours, *args, **(kwargs or {}))


def attend_by(
    ours: ConvertedAttention,
    query: Queries,
    key: SharedKeys,
    value: SharedValues,
    attn_mask: Shaped[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Outputs:
    """What `scaled_dot_product_attention` takes, by a mechanism instead."""
    if is_causal:
        raise ValueError(
            f"is_causal asks that no token sees those after it, and {ours.attention!r} was built to see both "
            "ways: leave it out, or restore the model first"
        )
    if dropout_p:
        raise ValueError(
            "attention weights, which are never formed, cannot drop out: set attn_drop to 0 in each layer"
        )
    valid = None if attn_mask is None else real_keys(attn_mask, len(query))
    return ours(*as_softmax(query, key, value, scale), valid=valid).transpose(1, 2)


def real_keys(mask: Shaped[Tensor, "..."], batch: int) -> Valid:
    """The tokens that a mask keeps for all others. Raises `ValueError` where it says more than that.

    mask: boolean, True to look there, or of 0 and numbers without end, added to scores. Rows of tokens that
        nobody may see may hold anything: nobody sees what they make.
    """
    otherwise = (
        "this mask keeps more apart than padding, or adds to scores, which a mechanism would ignore: give "
        "each image a row of its own, or restore the model first"
    )
    mask = mask[(None,) * (4 - mask.ndim)].expand(batch, -1, -1, -1)
    keep: Bool[Tensor, "b h t s"] = mask
    if mask.dtype != torch.bool:
        keep = mask == 0
        require((keep | (mask <= torch.finfo(mask.dtype).min)).all(), otherwise)
    valid = keep.any((1, 2))
    alike = (keep == valid[:, None, None]).all(-1)
    if keep.shape[2] == keep.shape[3]:
        alike = alike | ~valid[:, None]
    require(alike.all(), otherwise)
    return valid


def attention_layers(model: nn.Module) -> Mapping[str, TimmAttention]:
    """All of timm's in a model that attend among tokens, by name, whether they can be converted or not."""
    layers = (TimmAttention(name, module) for name, module in model.named_modules())
    return {layer.name: layer for layer in layers if attends(layer.kind)}


def attends(kind: type[nn.Module]) -> bool:
    source = forward_source(kind)
    theirs = kind.__module__.partition(".")[0] == "timm" and kind.__name__ not in NOT_AMONG_TOKENS
    return theirs and any(call in source for call in ("softmax(", "scaled_dot_product_attention("))


def convert(
    model: M, attention: str = "softmax", *, only: str = "*", max_len: int | None = None, **options: Any
) -> M:
    """Let the attention layers of a vision transformer attend by the mechanism called `attention`; return it.

    The model is called, trained and moved as before. Its weights are the very same, and so are their names;
    each converted layer has a submodule `subquad` besides, with what the mechanism draws or learns. To load
    what was saved by `state_dict()`, make the model, convert it alike, and load. A layer can be converted
    again. Class, distillation and register tokens are tokens like others; layers that pool them, asking for
    one image by one query, stay as they are.

    Raises `ValueError` that lists all layers that cannot be converted, and why; nothing is changed then. What
    only a call shows is refused by that call: masks beyond padding, `is_causal`, weights asked for.

    model: of timm, or one that holds such a model, changed in place.
    attention: the mechanism's name, or those of the layers of a network that mixes them, with their options:
        "performer:features=256*3+softmax", over which the layers go round (`subquad.notation`).
    only: a pattern of the names of layers to convert, such as "blocks.[0-5].*"; "*" fits all.
    max_len: the most tokens, for mechanisms with weights per position. None: those of the model's image size.
    options: the mechanism's own.
    """
    layers = require_attention(model)
    chosen = [layer for name, layer in layers.items() if fnmatchcase(name, only)]
    if not chosen:
        raise ValueError(f"only={only!r} fits no attention layer; there are {', '.join(layers)}")
    length = tokens(model) if max_len is None else max_len
    built = build_mechanisms(chosen, attention, options, partial(describe, length))
    for name, ours in built.items():
        module, weight = layers[name].module, next(layers[name].module.parameters())
        module.subquad = ours.to(weight.device, weight.dtype).train(module.training)
        module.__class__ = converted_kind(layers[name].kind)
    return model


def restore(model: M) -> M:
    """Take the mechanisms out of a converted model, which then attends as it did before; return the model."""
    for layer in require_attention(model).values():
        module, kind = layer.module, layer.kind
        if type(module) is not kind:
            del module.subquad
            module.__class__ = kind
    return model


def require_attention(model: nn.Module) -> Mapping[str, TimmAttention]:
    """The layers of a model, or `ValueError` where there are none."""
    if layers := attention_layers(model):
        return layers
    raise ValueError(f"{type(model).__name__} has no attention of timm's among tokens")


def describe(
    max_len: int | None, layer: TimmAttention, attention: str, options: Mapping[str, Any], number: int
) -> dict[str, Any]:
    """The arguments of a `ConvertedAttention` for this layer."""
    return {
        "attention": attention,
        "options": options,
        "heads": layer.heads,
        "head_dim": layer.head_dim,
        "causal": False,
        "max_len": max_len,
        "layer": number,
    }


def tokens(model: nn.Module) -> int | None:
    """How many there are in an image of the size that a model is for, where it says so."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return None if patches is None else patches + getattr(model, "num_prefix_tokens", 0)
