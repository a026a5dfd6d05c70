"""Put a mechanism into a model that was written for `torch.nn.MultiheadAttention`."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from subquad.nn.layers.named import layer_by_layer
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.tie import tie_layers
from subquad.nn.torch_layer import unsupported

M = TypeVar("M", bound=nn.Module)


def replace_attention(model: M, attention: str = "softmax", *, only: str = "*", **options: Any) -> M:
    """Replace each `nn.MultiheadAttention` in `model` by the mechanism called `attention`; return `model`.

    The model is called as before: weights, device, dtype, mode, `requires_grad` and `batch_first` are carried
    over. Parameters stay the very same, but where a mechanism has inputs beyond q, k and v: there
    `in_proj_weight` and `in_proj_bias` are new and begin with torch's rows. A layer that stands in several
    places is replaced once. Layers are numbered in the order of their names, from 0, so that copies of one
    layer draw directions of their own, and weights that a mechanism shares between layers are shared.

    Call this before the optimiser is made, and before the model is wrapped or compiled. Raises `ValueError`
    that lists all layers that cannot be replaced, and why; nothing is changed then.

    model: changed in place.
    attention: the mechanism's name, or those of the layers of a network that mixes them, with their options:
        "local:width=128*3+softmax", over which the layers go round (`subquad.notation`).
    only: a pattern of the names of layers to replace, such as "decoder.*.self_attn"; "*" fits all.
    options: those of `MultiheadAttention.from_torch` except `layer` (`causal`, `rotary`, `scale`, `max_len`),
        and the mechanism's own.
    """
    if "layer" in options:
        raise ValueError("layers are numbered in the order of their names: leave layer out")
    chosen = choose(model, only)
    owned = (x.named_parameters(recurse=False, remove_duplicate=False) for x in model.modules())
    owners = Counter(parameter for parameters in owned for _, parameter in parameters)
    replacements: dict[nn.MultiheadAttention, MultiheadAttention] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    shared = {name: options.pop(name) for name in options.keys() & signature(MultiheadAttention).parameters}
    mechanisms = layer_by_layer(attention, options, depth=len(chosen))
    for number, ((theirs, names), (name, own)) in enumerate(zip(chosen.items(), mechanisms, strict=True)):
        reasons = [*unsupported(theirs), *altered(theirs)]
        if not reasons:
            try:
                ours = MultiheadAttention.from_torch(theirs, name, layer=number, **shared, **own)
            except ValueError as error:
                reasons = [str(error)]
            else:
                replacements[theirs] = ours
                tied = any(owners[parameter] > 1 for parameter in theirs.parameters(recurse=False))
                reasons = [*unfit(ours, crosses=crosses(model, names), shared=tied)]
        for reason in reasons:
            problems[reason].append(names[0])
    if problems:
        lines = (f"\n  {', '.join(names)}: {reason}" for reason, names in problems.items())
        raise ValueError(f"nothing was replaced, for some layers cannot be:{''.join(lines)}")
    tie_layers(replacements.values())
    for theirs, ours in replacements.items():
        share_parameters(ours, theirs)
        for name in chosen[theirs]:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, ours)
    return model


def choose(model: nn.Module, only: str) -> dict[nn.MultiheadAttention, list[str]]:
    """The layers of torch's with a name that `only` fits, in order, each with all its names."""
    layers: dict[nn.MultiheadAttention, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            layers[module].append(name)
    if model in layers:
        raise ValueError("the model is the layer itself: use subquad.MultiheadAttention.from_torch")
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no torch.nn.MultiheadAttention to replace")
    chosen = {
        layer: names for layer, names in layers.items() if any(fnmatchcase(name, only) for name in names)
    }
    if not chosen:
        known = ", ".join(name for names in layers.values() for name in names)
        raise ValueError(f"only={only!r} fits no torch.nn.MultiheadAttention; there are {known}")
    return chosen


def altered(theirs: nn.MultiheadAttention) -> Iterator[str]:
    """What somebody did to torch's layer that would be lost with it."""
    for part, kinds in (
        (theirs, (nn.MultiheadAttention,)),
        (theirs.out_proj, (nn.Linear, NonDynamicallyQuantizableLinear)),
    ):
        if type(part) not in kinds:
            yield (
                f"a {type(part).__name__} may do more than torch's {kinds[0].__name__}: replace before the "
                "model is parametrised or wrapped, or leave this one out by a pattern, only=…"
            )
        if any(hooks for name, hooks in vars(part).items() if "_hooks" in name):
            yield f"its {kinds[0].__name__} has hooks, which would be lost: take them off first"
    if any(type(parameter) is not nn.Parameter for parameter in theirs.parameters()):
        yield "its parameters are sharded or packed: replace before that is done"


def crosses(model: nn.Module, names: list[str]) -> bool:
    """Whether torch's decoder attends by this layer from one sequence to another."""
    places = (name.rpartition(".") for name in names)
    return any(
        last == "multihead_attn" and isinstance(model.get_submodule(path), nn.TransformerDecoderLayer)
        for path, _, last in places
    )


def unfit(ours: MultiheadAttention, *, crosses: bool, shared: bool) -> Iterator[str]:
    """Why this layer cannot take the place of torch's."""
    if crosses and (ours.causal or ours.rotary or not ours.mechanism.traits.cross):
        yield (
            "it attends from one sequence to another, which needs a mechanism with the trait `cross`, "
            "neither causal nor rotary: give it one in a call of its own, and the others theirs by a "
            'pattern, such as only="*.self_attn"'
        )
    if shared and list(ours.widths) != list("qkv"):
        yield (
            f"it shares weights with another module, and {ours.attention!r} has more inputs than q, k and v, "
            "which need rows of their own: untie the weights, or take another mechanism"
        )


def share_parameters(ours: MultiheadAttention, theirs: nn.MultiheadAttention) -> None:
    """Let ours hold the parameters of torch's, not copies, for whoever else holds them."""
    for mine, part in ((ours, theirs), (ours.out_proj, theirs.out_proj)):
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.shape == mine.get_parameter(name).shape:
                setattr(mine, name, parameter)
