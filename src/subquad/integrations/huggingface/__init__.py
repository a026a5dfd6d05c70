"""Mechanisms in pretrained models of Hugging Face's `transformers`.

import subquad.integrations.huggingface as hf

hf.convert(model, "performer", features=256)
model.generate(**inputs, past_key_values=hf.Cache(model))
"""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily
from subquad.extras import require

if TYPE_CHECKING:
    from subquad.integrations.huggingface.cache import Cache
    from subquad.integrations.huggingface.conversion import Conversion, convert_folder
    from subquad.integrations.huggingface.convert import convert, disable_attention_dropout, restore
    from subquad.integrations.huggingface.distil import distil
    from subquad.integrations.huggingface.fidelity import activations, fidelity
    from subquad.integrations.huggingface.positions import extend_positions
    from subquad.integrations.huggingface.recovery import Stage, recover
    from subquad.integrations.huggingface.saved import from_pretrained
    from subquad.integrations.huggingface.texts import Texts, read_texts
    from subquad.integrations.huggingface.transfer import transfer

require("transformers", extra="huggingface", user="pretrained models", since=(5, 23))

__all__ = [
    "Cache",
    "Conversion",
    "Stage",
    "Texts",
    "activations",
    "convert",
    "convert_folder",
    "disable_attention_dropout",
    "distil",
    "extend_positions",
    "fidelity",
    "from_pretrained",
    "read_texts",
    "recover",
    "restore",
    "transfer",
]

export_lazily(
    __name__,
    {
        "cache": ["Cache"],
        "conversion": ["Conversion", "convert_folder"],
        "convert": ["convert", "disable_attention_dropout", "restore"],
        "distil": ["distil"],
        "fidelity": ["activations", "fidelity"],
        "positions": ["extend_positions"],
        "recovery": ["Stage", "recover"],
        "saved": ["from_pretrained"],
        "texts": ["Texts", "read_texts"],
        "transfer": ["transfer"],
    },
)
