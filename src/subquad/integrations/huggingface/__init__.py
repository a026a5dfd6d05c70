"""Mechanisms in pretrained models of Hugging Face's `transformers`.

import subquad.integrations.huggingface as hf

hf.convert(model, "performer", features=256)
model.generate(**inputs, past_key_values=hf.Cache(model))
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.integrations.huggingface.cache import Cache
    from subquad.integrations.huggingface.convert import convert, disable_attention_dropout, restore
    from subquad.integrations.huggingface.distil import distil
    from subquad.integrations.huggingface.fidelity import activations, fidelity
    from subquad.integrations.huggingface.saved import from_pretrained
    from subquad.integrations.huggingface.transfer import transfer

if find_spec("transformers") is None:
    raise ImportError('pretrained models need transformers: pip install "subquad[huggingface]"')

__all__ = [
    "Cache",
    "activations",
    "convert",
    "disable_attention_dropout",
    "distil",
    "fidelity",
    "from_pretrained",
    "restore",
    "transfer",
]

export_lazily(
    __name__,
    {
        "cache": ["Cache"],
        "convert": ["convert", "disable_attention_dropout", "restore"],
        "distil": ["distil"],
        "fidelity": ["activations", "fidelity"],
        "saved": ["from_pretrained"],
        "transfer": ["transfer"],
    },
)
