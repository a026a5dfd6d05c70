"""Attention as the models of `transformers` call it, and the mask that they make for it.

A model's configuration names the function by which all its layers attend, and the one that makes their mask,
once for all layers of a kind (`AttentionInterface` and `AttentionMaskInterface`, as transformers 5.23 has
them). Here both are called "subquad". A layer that `convert` has given a mechanism attends by it; any other
attends as the model did before, with the mask that it had before.

What neither a mechanism nor its padding can express is refused where it arrives, since the layers of a model
would otherwise attend to what they should not, or lose what they should have, without a word.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from subquad.integrations.converted import (
    ConvertedAttention,
    Merged,
    SharedKeys,
    SharedValues,
    as_softmax,
)
from subquad.mechanism import Keys, Queries, State, Valid, Values

HOME = "subquad.integrations.huggingface"
NAME = "subquad"  # of the functions, of each layer's submodule or None, and of what a configuration notes
STREAM = "subquad_stream"  # the attribute by which keys say whose stream they go on

# what models hand to their attention beside queries, keys and values, and softmax adds to its scores
BEYOND = {
    "position_bias": "adds a bias to scores by position",
    "softcap": "bounds its scores (softcap)",
    "s_aux": "has learnt sinks among its keys",
    "cu_seq_lens_q": "takes packed sequences",
}

WITHOUT_MECHANISMS = (
    f"attn_implementation={NAME!r} is for models with mechanisms, and this one has none: load a converted "
    f"model with {HOME}.from_pretrained, and give others mechanisms with {HOME}.convert"
)

Form = Literal["causal", "bidirectional", "other"]


class Mask(NamedTuple):
    """Who may see whom."""

    form: Form
    span: int | None  # how many tokens away it may be, where a window bounds that
    valid: Valid | None  # the real tokens; None: all are
    before: Any  # the mask that layers without a mechanism get


class Call(NamedTuple):
    """What a converted layer was called with, `as_softmax`, and what softmax attention gave in its place."""

    layer: ConvertedAttention
    q: Queries
    k: Keys
    v: Values
    valid: Valid | None
    out: Merged


class Note(NamedTuple):
    """What a configuration notes of a conversion, in its field `subquad`."""

    before: str  # the implementation that the model had
    whole: bool  # whether every layer has a mechanism


class Stream:
    """What a cache keeps of a converted layer; attention leaves its state there."""

    state: State | None = None


OBSERVER: ContextVar[Callable[[Call], None] | None] = ContextVar("observer", default=None)


@contextmanager
def attending_as_before(observer: Callable[[Call], None]) -> Iterator[None]:
    """Models attend as before they were converted, and the observer sees each call of a converted layer."""
    token = OBSERVER.set(observer)
    try:
        yield
    finally:
        OBSERVER.reset(token)


def observing() -> Callable[[Call], None] | None:
    """Who sees the calls; nobody in a graph, which cannot ask for what stands in a context."""
    return None if torch.compiler.is_compiling() else OBSERVER.get()


def register() -> None:
    """Let configurations name these functions. Doing so twice does no harm."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)


def note_of(config: PreTrainedConfig) -> Note:
    noted = getattr(config, NAME, None)
    if noted is None:
        raise ValueError(WITHOUT_MECHANISMS)
    return Note(noted["before"], noted["whole"])


def make_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    config: PreTrainedConfig,
    **named: Any,
) -> Mask:
    """Called once for all layers of a kind. `attention_mask` is that of real tokens, `(b s)`, or None."""
    note = note_of(config)
    valid = attention_mask
    if valid is not None:
        require_all(valid, kv_length)
        valid = valid[:, :kv_length]
        if q_length <= kv_length and not torch.compiler.is_compiling() and valid.all():
            valid = None  # transformers, too, reads these numbers, so as to do without a mask
    before = None
    if not note.whole or observing() is not None:
        before = ALL_MASK_ATTENTION_FUNCTIONS[note.before](
            q_length=q_length,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            config=config,
            **named,
        )
    return Mask(*told_apart(mask_function), valid, before)


def require_all(valid: Tensor, length: int) -> None:
    if valid.shape[-1] < length:
        raise ValueError(
            f"attention_mask speaks of {valid.shape[-1]} tokens, and there are {length} with those that a "
            "cache has seen: hand in a mask of all of them"
        )


def told_apart(mask_function: Callable[..., Any]) -> tuple[Form, int | None]:
    """The form of attention that transformers' function is for, and the span of its window if it has one."""
    if mask_function is causal_mask_function:
        return "causal", None
    if mask_function is bidirectional_mask_function:
        return "bidirectional", None
    forms: tuple[tuple[Form, Callable[[int], Callable[..., Any]]], ...] = (
        ("causal", sliding_window_causal_mask_function),
        ("bidirectional", sliding_window_bidirectional_mask_function),
    )
    for form, windowed in forms:
        if parts := intersected(mask_function):
            overlay, whole = intersected(windowed(1))
            if len(parts) == 2 and parts[1] is whole and parts[0].__code__ is overlay.__code__:
                window = parts[0].__closure__[0].cell_contents
                return form, window - 1 if form == "causal" else window
    return "other", None


def intersected(mask_function: Callable[..., Any]) -> tuple[Any, ...]:
    """The functions of which transformers' `and_masks` made this one, if it did."""
    cells = getattr(mask_function, "__closure__", None) or ()
    contents = [cell.cell_contents for cell in cells]
    return contents[0] if len(contents) == 1 and isinstance(contents[0], tuple) else ()


def attend(
    module: nn.Module,
    query: Queries,
    key: SharedKeys,
    value: SharedValues,
    attention_mask: Mask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **named: Any,
) -> tuple[Merged, Tensor | None]:
    """By the layer's mechanism, or as before where it has none. Mechanisms return no weights."""
    if not hasattr(module, NAME):
        raise ValueError(WITHOUT_MECHANISMS)
    layer: Any = getattr(module, NAME)
    if layer is None:
        return attend_as_before(module, query, key, value, attention_mask, dropout, scaling, named)
    require_supported(layer, attention_mask, dropout, named)
    valid = attention_mask.valid if isinstance(attention_mask, Mask) else None
    if valid is not None:
        require_all(valid, key.shape[2])
        valid = valid[:, -key.shape[2] :]
    inputs = as_softmax(query, key, value, scaling)
    if observer := observing():
        result = attend_as_before(module, query, key, value, attention_mask, dropout, scaling, named)
        observer(Call(layer, *inputs, valid, result[0]))
        return result
    stream: Stream | None = getattr(key, STREAM, None)
    if stream is not None:
        out, stream.state = layer.step(*inputs, valid=valid, state=stream.state)
        return out, None
    if layer.causal and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{layer.attention!r} goes on from a state, and this cache holds keys and values: generate with "
            f"past_key_values={HOME}.Cache(model), or use_cache=False"
        )
    return layer(*inputs, valid=valid), None


def attend_as_before(
    module: nn.Module,
    query: Queries,
    key: SharedKeys,
    value: SharedValues,
    attention_mask: Mask | Tensor | None,
    dropout: float,
    scaling: float | None,
    named: Mapping[str, Any],
) -> tuple[Merged, Tensor | None]:
    """By the function that this layer had before its model was converted, with the mask that it had."""
    mask = attention_mask.before if isinstance(attention_mask, Mask) else attention_mask
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    config: Any = module.config
    function = ALL_ATTENTION_FUNCTIONS.get_interface(note_of(config).before, eager)
    return function(module, query, key, value, mask, dropout=dropout, scaling=scaling, **named)


def require_supported(
    layer: ConvertedAttention, mask: Mask | Tensor | None, dropout: float, named: dict[str, Any]
) -> None:
    """Raise `ValueError` for what this call asks of softmax attention and no mechanism can do."""
    name = repr(layer.attention)
    if dropout:
        raise ValueError(
            f"attention weights, which {name} never forms, cannot drop out ({dropout:g}): call "
            f"{HOME}.disable_attention_dropout(model), or model.eval()"
        )
    if named.get("output_attentions"):
        raise ValueError(
            f"output_attentions asks for attention weights, which {name} never forms: leave it out"
        )
    for argument, what in BEYOND.items():
        if (x := named.get(argument)) is not None and not (isinstance(x, Tensor) and is_zero(x)):
            raise ValueError(
                f"this model {what}, which {name} would ignore: convert other layers, with only=…"
            )
    if isinstance(mask, Tensor):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} says who may see whom, and {name} knows padding alone: "
            "hand in a mask of real tokens, (batch, tokens)"
        )
    if mask is not None:
        require_form(layer, mask)
    if (causal := named.get("is_causal")) is not None and causal != layer.causal:
        raise ValueError(f"is_causal={causal} for a layer that was converted with causal={layer.causal}")


def is_zero(bias: Tensor) -> bool:
    """T5's cross-attention hands on a bias of zeros."""
    return not torch.compiler.is_compiling() and not bias.any()


def require_form(layer: ConvertedAttention, mask: Mask) -> None:
    name = repr(layer.attention)
    if mask.form == "other":
        raise ValueError(
            f"this mask keeps more apart than padding (packed sequences, blocks, prefixes), which {name} "
            "would ignore: give each sequence a row of its own, with an attention_mask, or convert others"
        )
    if (mask.form == "causal") != layer.causal:
        raise ValueError(
            f"a {mask.form} mask for a layer that was converted with causal={layer.causal}: convert the "
            "model with the configuration that it is used with"
        )
    if mask.span is not None and not stays_within(mask.span, layer.attention, layer.options):
        raise ValueError(f"{name} would look beyond the model's window of {mask.span} tokens")


def stays_within(span: int, attention: str, options: Mapping[str, Any]) -> bool:
    """Whether a mechanism sees no token that is more than `span` away."""
    return attention == "local" and options.get("width", math.inf) * options.get("dilation", 1) <= span
