"""Weights that the layers of a network have in common."""

from collections.abc import Iterable

from subquad.mechanism import Mechanism
from subquad.nn.attention_layer import AttentionLayer
from subquad.notation import written


def tie_layers(layers: Iterable[AttentionLayer]) -> None:
    """Share what mechanisms of one name and the same options have in common, from the first such layer on."""
    firsts: dict[str, Mechanism] = {}
    for layer in layers:
        first = firsts.setdefault(written(layer.attention, layer.options), layer.mechanism)
        if first is not layer.mechanism:
            layer.mechanism.tie(first)
