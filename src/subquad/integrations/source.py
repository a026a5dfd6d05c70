"""What other libraries' modules do, as their source says it."""

import inspect
from functools import cache

from torch import nn


@cache
def forward_source(kind: type[nn.Module]) -> str:
    """That of a module's forward pass; transformers, too, tells by it whether a model calls the interface."""
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ""
