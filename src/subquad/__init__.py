"""Efficient attention: every mechanism behind one checked contract, compared on your data and machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subquad.experiments.predictor import load
    from subquad.mechanism import Dims, Mechanism, Traits
    from subquad.nn.multihead import MultiheadAttention
    from subquad.nn.replace import replace_attention
    from subquad.ops.backends import backend
    from subquad.registry import build, catalog, options

__version__ = "0.1.0"

_HOME = {
    "Dims": "mechanism",
    "Mechanism": "mechanism",
    "Traits": "mechanism",
    "backend": "ops.backends",
    "build": "registry",
    "catalog": "registry",
    "options": "registry",
    "MultiheadAttention": "nn.multihead",
    "replace_attention": "nn.replace",
    "load": "experiments.predictor",
}

__all__ = [
    "Dims",
    "Mechanism",
    "MultiheadAttention",
    "Traits",
    "backend",
    "build",
    "catalog",
    "load",
    "options",
    "replace_attention",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line and the report start without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'subquad' has no attribute {name!r}")
    return getattr(import_module(f"subquad.{_HOME[name]}"), name)
