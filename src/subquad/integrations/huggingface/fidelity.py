"""How far mechanisms are from softmax attention on what a pretrained model makes of a text.

The model reads the text with the attention that it was trained with. Each layer's queries, keys and values,
turned with their positions where the model does that, are what `subquad.measure.fidelity` takes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subquad.integrations.huggingface.convert import convert, restore
from subquad.integrations.huggingface.interface import NAME, Call, attending_as_before
from subquad.integrations.huggingface.layers import converted_layers, require_pretrained
from subquad.integrations.huggingface.saved import load_folder
from subquad.measure.layer_fidelity import THRESHOLD, Activations, ModelFidelity, layer_fidelities


def fidelity(
    model: nn.Module,
    attention: str,
    batch: Mapping[str, Any],
    *,
    threshold: float = THRESHOLD,
    draws: int = 3,
    **options: Any,
) -> ModelFidelity:
    """Layer by layer and head by head, how far a mechanism is from the softmax attention of a model.

    model: of transformers, converted or not; it is left as it was. Of a converted one only the converted
        layers are measured, of another all that can be converted.
    attention: the mechanism's name, with its options or without, as it is initialised.
    batch: what the model is called with, by name: "input_ids", "attention_mask", …
    threshold: the relative error up to which a layer bears the conversion.
    draws: of weights and random features.
    options: the mechanism's own.

    Raises `ValueError` where nothing of the model can be converted, and for a mechanism that cannot stand in.
    """
    return layer_fidelities(attention, activations(model, batch), threshold=threshold, draws=draws, **options)


def activations(model: nn.Module, batch: Mapping[str, Any]) -> list[Activations]:
    """What each layer hands to its softmax attention for a batch, as plain softmax attention takes it."""
    pretrained = require_pretrained(model)
    converted = hasattr(pretrained.config, NAME)
    if not converted:
        convert(pretrained, "softmax")
    names = {ours: name for name, ours in converted_layers(pretrained).items()}
    seen: list[Activations] = []

    def observe(call: Call) -> None:
        seen.append(
            Activations(names[call.layer], call.q, call.k, call.v, call.valid, causal=call.layer.causal)
        )

    training = pretrained.training
    pretrained.eval()
    try:
        with torch.no_grad(), attending_as_before(observe):
            pretrained(**batch)
    finally:
        pretrained.train(training)
        if not converted:
            restore(pretrained)
    return seen


def read_model(folder: Path, text: Path, *, tokens: int) -> tuple[nn.Module, dict[str, Any]]:
    """A model from a folder, and the beginning of a text as it is called with it.

    Raises `ValueError` for a folder without model or tokenizer, and for a text that cannot be read.
    """
    model, tokenizer = load_folder(folder)
    if tokenizer is None:
        raise ValueError(f"{str(folder)!r} has no tokenizer, and a text is read with one")
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{text} is no text that can be read: {error}") from error
    batch = tokenizer(words, return_tensors="pt", truncation=True, max_length=tokens)
    length = batch["input_ids"].shape[1]
    if not words.strip() or length < 2:
        raise ValueError(f"{text} has too few tokens to attend to: take a longer text")
    most = min(getattr(model.config, "max_position_embeddings", length), tokenizer.model_max_length)
    if length > most:
        raise ValueError(f"{folder} reads {most} tokens at most, and {tokens} are asked for: ask for fewer")
    return model, dict(batch)
