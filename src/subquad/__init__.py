"""Efficient attention: every mechanism behind one checked contract, compared on your data and machine."""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.choose import choose
    from subquad.compare import compare
    from subquad.config import ModelConfig, SamplingConfig
    from subquad.experiments.config import Choice, Comparison, TrainingConfig
    from subquad.experiments.predictor import load_model
    from subquad.measure.fidelity import fidelity
    from subquad.mechanism import Dims, Mechanism, Traits
    from subquad.nn.multihead import MultiheadAttention
    from subquad.nn.replace import replace_attention
    from subquad.ops.backends import backend
    from subquad.registry import build, catalog, find, options

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Comparison",
    "Dims",
    "Mechanism",
    "ModelConfig",
    "MultiheadAttention",
    "SamplingConfig",
    "TrainingConfig",
    "Traits",
    "backend",
    "build",
    "catalog",
    "choose",
    "compare",
    "fidelity",
    "find",
    "load_model",
    "options",
    "replace_attention",
]

export_lazily(
    __name__,
    {
        "choose": ["choose"],
        "compare": ["compare"],
        "config": ["ModelConfig", "SamplingConfig"],
        "experiments.config": ["Choice", "Comparison", "TrainingConfig"],
        "experiments.predictor": ["load_model"],
        "measure.fidelity": ["fidelity"],
        "mechanism": ["Dims", "Mechanism", "Traits"],
        "nn.multihead": ["MultiheadAttention"],
        "nn.replace": ["replace_attention"],
        "ops.backends": ["backend"],
        "registry": ["build", "catalog", "find", "options"],
    },
    renamed={"load": "load_model"},
)
