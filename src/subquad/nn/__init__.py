"""Layers and models around any mechanism: heads, positions, blocks, encoder, classifier."""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.nn.beams import beam_search
    from subquad.nn.blocks import TransformerBlock
    from subquad.nn.encoder import Encoder, EncoderConfig, EncoderState
    from subquad.nn.generation import Decoder, generate
    from subquad.nn.initialise import initialise
    from subquad.nn.multihead import MultiheadAttention
    from subquad.nn.redraw import redraw
    from subquad.nn.replace import replace_attention
    from subquad.nn.sequence import Sequence, make_sequence
    from subquad.nn.state import Stream, detach, reorder, reset_rows

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderConfig",
    "EncoderState",
    "MultiheadAttention",
    "Sequence",
    "Stream",
    "TransformerBlock",
    "beam_search",
    "detach",
    "generate",
    "initialise",
    "make_sequence",
    "redraw",
    "reorder",
    "replace_attention",
    "reset_rows",
]

export_lazily(
    __name__,
    {
        "beams": ["beam_search"],
        "blocks": ["TransformerBlock"],
        "encoder": ["Encoder", "EncoderConfig", "EncoderState"],
        "generation": ["Decoder", "generate"],
        "initialise": ["initialise"],
        "multihead": ["MultiheadAttention"],
        "redraw": ["redraw"],
        "replace": ["replace_attention"],
        "sequence": ["Sequence", "make_sequence"],
        "state": ["Stream", "detach", "reorder", "reset_rows"],
    },
)
