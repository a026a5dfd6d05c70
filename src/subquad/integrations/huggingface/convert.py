"""Give the layers of a pretrained model another attention; weights stay as they are."""

from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from subquad.integrations import timm
from subquad.integrations.converted import ConvertedAttention, build_mechanisms
from subquad.integrations.huggingface.interface import NAME, note_of, register, stays_within
from subquad.integrations.huggingface.layers import (
    PretrainedAttention,
    attention_layers,
    converted_layers,
    require_pretrained,
)
from subquad.nn.layers.named import network
from subquad.nn.replace import replace_attention

M = TypeVar("M", bound=nn.Module)

DROPOUTS = ("dropout", "attn_dropout", "attention_dropout")  # what models call that of attention weights


def convert(
    model: M, attention: str = "softmax", *, only: str = "*", max_len: int | None = None, **options: Any
) -> M:
    """Let the attention layers of a pretrained model attend by the mechanism called `attention`; return it.

    The model is called, trained, saved and moved as before. Its weights are the very same; each converted
    layer has a submodule `subquad` besides, with what the mechanism draws or learns. Attention is then
    another function, and quality is lost until the model has been trained on. A layer can be converted again.

    Layers with a sliding window, beyond which a mechanism would look, stay as they are, unless the mechanism
    is `local`, which then has their window by default.

    Raises `ValueError` that lists all layers that cannot be converted, and why; nothing is changed then. What
    only a call shows is refused by that call: custom masks, packed sequences, attention dropout, weights
    asked for.

    model: changed in place. Of transformers, where its attention must be what its configuration names; or one
        of timm's (`subquad.integrations.timm.convert`), or any with `torch.nn.MultiheadAttention` in it
        (`subquad.replace_attention`), to which what is said there applies.
    attention: the mechanism's name, or those of the layers of a network that mixes them, with their options:
        "performer:features=256*3+softmax", over which the layers go round (`subquad.notation`).
    only: a pattern of the names of layers to convert, of a model of transformers' within `model.base_model`,
        such as "encoder.*"; "*" fits all.
    max_len: the longest sequence, for mechanisms with weights per position. None: the model's.
    options: the mechanism's own, and with `torch.nn.MultiheadAttention` those of `replace_attention`.

    Choromanski et al.: Rethinking Attention with Performers. ICLR 2021, arXiv:2009.14794, section 4.3,
    carries a pretrained transformer over so.
    """
    if not isinstance(model, PreTrainedModel):
        return convert_other(model, attention, only=only, max_len=max_len, **options)
    layers = attention_layers(pretrained := require_pretrained(model))
    chosen = choose_layers(layers, only, windows=is_local(attention, options))
    length = getattr(pretrained.config, "max_position_embeddings", None) if max_len is None else max_len
    built = build_mechanisms(chosen, attention, options, partial(describe, length))
    attach(layers, built)
    note(pretrained, layers)
    return model


def convert_other(model: M, attention: str, *, only: str, max_len: int | None, **options: Any) -> M:
    """The same for a model whose attention is timm's or torch's."""
    timms = [*timm.attention_layers(model)]
    torchs = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    wraps = any(isinstance(module, PreTrainedModel) for module in model.modules())
    if wraps or not (timms or torchs):
        require_pretrained(model)
    if timms and torchs:
        raise ValueError(
            f"{type(model).__name__} has attention of timm's ({timms[0]}) and of torch's ({torchs[0]}): call "
            "subquad.integrations.timm.convert for the one and subquad.replace_attention for the other"
        )
    convert_theirs = timm.convert if timms else replace_attention
    return convert_theirs(model, attention, only=only, max_len=max_len, **options)


def restore(model: M) -> M:
    """Take the mechanisms out of a converted model, which then attends as it did before; return the model.

    model: of transformers or timm. Layers of torch's were replaced, and are gone.
    """
    if not isinstance(model, PreTrainedModel) and timm.attention_layers(model):
        return timm.restore(model)
    pretrained = require_pretrained(model)
    layers = attention_layers(pretrained).values()
    for layer in layers:
        if hasattr(layer.module, NAME):
            delattr(layer.module, NAME)
    for config in {id(x): x for x in (pretrained.config, *(layer.config for layer in layers))}.values():
        if hasattr(config, NAME):
            config._attn_implementation_internal = note_of(config).before
            delattr(config, NAME)
        vars(config).pop("attn_implementation", None)
    return model


def disable_attention_dropout(model: M) -> M:
    """Let no attention weight drop out in training where layers were converted; return the model.

    Other dropout stays.
    """
    for layer in attention_layers(require_pretrained(model)).values():
        if layer.converted is None:
            continue
        for name in DROPOUTS:
            match getattr(layer.module, name, None):
                case nn.Dropout() as dropout:
                    dropout.p = 0.0
                case float():
                    setattr(layer.module, name, 0.0)
    return model


def choose_layers(
    layers: Mapping[str, PretrainedAttention], only: str, *, windows: bool
) -> list[PretrainedAttention]:
    """Those with a name that `only` fits, and without a window unless `windows` says that this may be."""
    fitting = [layer for name, layer in layers.items() if fnmatchcase(name, only)]
    if not fitting:
        raise ValueError(f"only={only!r} fits no attention layer; there are {', '.join(layers)}")
    chosen = [layer for layer in fitting if windows or layer.span is None]
    if not chosen:
        span = max(layer.span or 0 for layer in fitting)
        raise ValueError(
            f"all of these layers have sliding windows, beyond which a token sees nothing ({span} tokens): "
            "take 'local', or load the model with sliding_window=None, so that they see everything"
        )
    return chosen


def is_local(attention: str, options: Mapping[str, Any]) -> bool:
    return all(member.attention == "local" for member in network(attention, options))


def describe(
    max_len: int | None, layer: PretrainedAttention, attention: str, options: Mapping[str, Any], number: int
) -> dict[str, Any]:
    """The arguments of a `ConvertedAttention` for this layer."""
    options = dict(options)
    if layer.span is not None:
        options.setdefault("width", layer.span)
        if not stays_within(layer.span, attention, options):
            raise ValueError(f"it sees {layer.span} tokens far, and 'local' with these options sees farther")
    return {
        "attention": attention,
        "options": options,
        "heads": layer.heads,
        "head_dim": layer.head_dim,
        "causal": layer.causal,
        "max_len": max_len,
        "layer": number,
    }


def attach(layers: Mapping[str, PretrainedAttention], built: Mapping[str, ConvertedAttention]) -> None:
    """Put each mechanism beneath its layer, on that layer's device and in its dtype and mode."""
    for name, ours in built.items():
        module = layers[name].module
        weight = next(module.parameters())
        setattr(module, NAME, ours.to(weight.device, weight.dtype).train(module.training))


def note(model: PreTrainedModel, layers: Mapping[str, PretrainedAttention]) -> None:
    """Let configurations name our functions, and say what is needed to make the same layers again."""
    register()
    configs: dict[int, PreTrainedConfig] = {}
    whole: dict[int, bool] = defaultdict(lambda: True)
    for layer in layers.values():
        config = layer.config
        configs[id(config)] = config
        if not hasattr(layer.module, NAME):
            setattr(layer.module, NAME, None)
        whole[id(config)] &= layer.converted is not None
    for key, config in configs.items():
        implementation = config._attn_implementation
        before = note_of(config).before if implementation == NAME else implementation
        setattr(config, NAME, {"before": before or "eager", "whole": whole[key]})
        config._attn_implementation_internal = NAME
    made = {name: arguments(ours) for name, ours in converted_layers(model).items()}
    others = {"before": model.config._attn_implementation, "whole": False}  # a part of the model has its own
    setattr(model.config, NAME, {**getattr(model.config, NAME, others), "layers": made})
    # is saved, and refused where the model is loaded without its mechanisms
    model.config.attn_implementation = NAME


def arguments(layer: ConvertedAttention) -> dict[str, Any]:
    """With which `ConvertedAttention` makes such a layer again."""
    dims = layer.dims
    return {
        "attention": layer.attention,
        "options": layer.options,
        "heads": dims.heads,
        "head_dim": dims.head_dim,
        "causal": layer.causal,
        "max_len": dims.max_len,
        "layer": dims.layer,
    }
