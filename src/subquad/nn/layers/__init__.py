"""Whole layers: what they are (`layer.py`), those that come with the package, and finding them by name."""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.nn.layers.augmented_convolution import AugmentedConvolution
    from subquad.nn.layers.conformer import Conformer
    from subquad.nn.layers.informer import InformerDecoder, InformerEncoder
    from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, attention_inside
    from subquad.nn.layers.named import build_layer, layer_catalog
    from subquad.nn.layers.reversible import ReversibleBlock
    from subquad.nn.layers.star_transformer import StarTransformer

__all__ = [
    "AugmentedConvolution",
    "Conformer",
    "InformerDecoder",
    "InformerEncoder",
    "Layer",
    "LayerConfig",
    "LayerTraits",
    "ReversibleBlock",
    "StarTransformer",
    "attention_inside",
    "build_layer",
    "layer_catalog",
]

export_lazily(
    __name__,
    {
        "augmented_convolution": ["AugmentedConvolution"],
        "conformer": ["Conformer"],
        "informer": ["InformerDecoder", "InformerEncoder"],
        "layer": ["Layer", "LayerConfig", "LayerTraits", "attention_inside"],
        "named": ["build_layer", "layer_catalog"],
        "reversible": ["ReversibleBlock"],
        "star_transformer": ["StarTransformer"],
    },
)
