"""What a conversion saves: time and memory of a text by its length, and of the next token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from subquad.integrations.huggingface.cache import Cache, size_of
from subquad.integrations.huggingface.layers import converted_layers
from subquad.measure.memory import MB, peak_memory
from subquad.measure.timing import interleaved

PREFILL = 1024  # tokens of a prompt that are read at a time
WARM = 128  # tokens of the first pass
DECODED = 16  # tokens at the least that are timed
SECONDS, LIMIT = 2.0, 20.0  # for which something is timed at the least and, but for one round, at the most
TARGETS = 16  # tokens of a decoder's own in an encoder-decoder

Models = Mapping[str, PreTrainedModel]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model takes for a text of `tokens` tokens, alone in its batch."""

    tokens: int
    ms: float  # the median
    mb: float  # 10 ** 6 bytes beyond the model's own


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What a model takes for the next token after `tokens` of them."""

    tokens: int
    tokens_per_second: float  # the median
    cache_mb: float  # 10 ** 6 bytes


@torch.no_grad()
def reading(models: Models, tokens: int) -> dict[str, Reading]:
    """Time and memory of a forward pass by each model, timed in turns."""
    calls = {name: forward_pass(model, tokens) for name, model in models.items()}
    device = next(iter(models.values())).device
    memory: dict[str, float] = {}
    for name, call in calls.items():
        forward_pass(models[name], min(tokens, WARM))()  # whatever is loaded or compiled at first
        memory[name] = peak_memory(call, device=device).mb
    timings = interleaved(calls, repeats=3, seconds=SECONDS, limit=LIMIT, warmup=0.0, device=device)
    return {name: Reading(tokens=tokens, ms=timings[name].median, mb=memory[name]) for name in models}


@torch.no_grad()
def decoding(models: Models, tokens: int) -> dict[str, Decoding]:
    """Tokens a second of each model, from states where it is converted, and the size of what it keeps."""
    caches = {name: read_on(model, tokens) for name, model in models.items()}
    calls = {
        name: partial(model, input_ids=some_tokens(model, 1), past_key_values=caches[name])
        for name, model in models.items()
    }
    device = next(iter(models.values())).device
    sizes = {name: size_of(cache) for name, cache in caches.items()}
    timings = interleaved(calls, repeats=DECODED, seconds=SECONDS, device=device)
    return {
        name: Decoding(tokens=tokens, tokens_per_second=1e3 / timings[name].median, cache_mb=sizes[name] / MB)
        for name in models
    }


def forward_pass(model: PreTrainedModel, tokens: int) -> Callable[[], object]:
    ids = some_tokens(model, tokens)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :TARGETS]
    caching = {"use_cache": False} if model.can_generate() else {}
    return partial(model, **inputs, **caching)


def some_tokens(model: PreTrainedModel, count: int) -> Int[Tensor, "1 t"]:
    """Of the upper half of the vocabulary, where none is special."""
    most = model.config.get_text_config().vocab_size
    return torch.randint(most // 2, most, (1, count), device=model.device)


def read_on(model: PreTrainedModel, tokens: int) -> Any:
    """The model's cache after so many tokens."""
    cache = Cache(model) if converted_layers(model) else DynamicCache(config=model.config)
    for start in range(0, tokens, PREFILL):
        model(input_ids=some_tokens(model, min(PREFILL, tokens - start)), past_key_values=cache)
    return cache
