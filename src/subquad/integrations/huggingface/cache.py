"""What a converted model remembers between the tokens that it generates.

Behind the protocol of transformers' `Cache` stand the states of mechanisms, of the same size from the first
token on where a state is bounded. A layer that was not converted keeps its keys and values, as in a
`DynamicCache`.

An attention layer calls `update` with new keys and values and gets back those that its queries look at: here
the new ones alone, on which is noted whose stream they go on (`interface.attend`).
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from subquad.integrations.converted import SharedKeys, SharedValues
from subquad.integrations.huggingface.interface import STREAM, Stream
from subquad.integrations.huggingface.layers import attention_layers, require_pretrained
from subquad.nn.state import leaves, reorder

ASSISTED = (
    "a state does not give tokens back once it has read them, as assisted generation asks: leave out "
    "assistant_model and prompt_lookup_num_tokens, or crop a cache of keys and values"
)


class Cache(DynamicCache):
    """With which a converted model generates: `model.generate(**inputs, past_key_values=Cache(model))`.

    One is for one batch of sequences, as transformers' own are; `reset()` empties it. An encoder-decoder gets
    an `EncoderDecoderCache`, which keeps keys and values of what the encoder gave besides.

    model: that `convert` has changed. Raises `ValueError` where a layer's mechanism cannot stream.
    """

    def __new__(cls, model: nn.Module) -> Any:
        config = require_pretrained(model).config
        if not config.is_encoder_decoder:
            return super().__new__(cls)
        decoder = super().__new__(cls)
        decoder.__init__(model)
        return EncoderDecoderCache(decoder, DynamicCache(config=config.get_text_config(decoder=True)))

    def __init__(self, model: nn.Module) -> None:
        pretrained = require_pretrained(model)
        super().__init__(config=pretrained.config.get_text_config(decoder=True))
        converted = 0
        for layer in attention_layers(pretrained).values():
            if (ours := layer.converted) is None or not layer.causal:
                continue
            if ours.mechanism.traits.state is None:
                raise ValueError(
                    f"{ours.attention!r} cannot stream (layer {layer.name}), so that there is no state to "
                    "keep: generate with use_cache=False"
                )
            self.layers[layer.index] = StreamLayer()
            converted += 1
        if not converted:
            raise ValueError(
                f"{type(model).__name__} has no converted layer that reads from left to right: convert it "
                "first, or let it generate with transformers' own cache"
            )

    @property
    def size(self) -> int:
        """Bytes of all states, and of keys and values."""
        return size_of(self)


class StreamLayer(CacheLayerMixin, Stream):
    """The state of a converted layer, and how many tokens it has read, padding included."""

    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: SharedKeys, value_states: SharedValues) -> None:
        """A state is made by the mechanism when it reads the first tokens."""

    def update(
        self, key_states: SharedKeys, value_states: SharedValues, *_: Any, **__: Any
    ) -> tuple[SharedKeys, SharedValues]:
        self.length += key_states.shape[2]
        setattr(key_states, STREAM, self)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " n"]) -> None:
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = len(leaves(self.state)[0])
            self._take(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self._take(torch.arange(len(leaves(self.state)[0]))[indices.cpu()])

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(ASSISTED)

    def activate_past_recording(self) -> None:
        raise ValueError(ASSISTED)

    def _take(self, rows: Int[Tensor, " n"]) -> None:
        if self.state is not None:
            self.state = reorder(self.state, rows.to(leaves(self.state)[0].device))


def tensors_of(layer: Any) -> list[Tensor]:
    if isinstance(layer, StreamLayer):
        return [] if layer.state is None else leaves(layer.state)
    return [x for x in (layer.keys, layer.values) if x is not None]


def size_of(cache: Any) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in tensors_of(layer))
