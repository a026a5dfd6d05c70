"""Which layers of a trained model bear another attention: fidelity on what the model makes of a text.

A layer bears the conversion if the outputs of its heads together are as near to softmax's as a threshold that
the user states. It is a bound on what one layer loses, and no proof of what a model does whose layers are all
converted: an error of one layer is the next one's input.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from subquad.measure.fidelity import MOST_TOKENS, Fidelity, fidelity
from subquad.mechanism import Keys, Queries, Valid, Values

THRESHOLD = 0.1  # a tenth of the output, as a first guess: what a model forgives is its own


class Activations(NamedTuple):
    """What a layer of a model hands to its attention, as `fidelity` takes it."""

    layer: str
    q: Queries
    k: Keys
    v: Values
    valid: Valid | None = None
    causal: bool = True
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFidelity:
    """A layer by its name, and whether it bears the conversion."""

    layer: str
    bears: bool
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class ModelFidelity:
    """How far a mechanism is from softmax attention, layer by layer.

    threshold: the relative error, of all heads of a layer together, up to which it bears the conversion.
    """

    attention: str
    threshold: float
    layers: tuple[LayerFidelity, ...]

    @property
    def bearing(self) -> list[str]:
        """The layers that bear the conversion."""
        return [each.layer for each in self.layers if each.bears]


def layer_fidelities(
    attention: str,
    layers: Iterable[Activations],
    *,
    threshold: float = THRESHOLD,
    draws: int = 3,
    most_tokens: int = MOST_TOKENS,
    **options: Any,
) -> ModelFidelity:
    """Measure a mechanism on the activations of each layer, in their order and one at a time.

    layers: may make them as they are asked for, so that those of one layer are in memory at a time.
    threshold: see `ModelFidelity`; where the mechanism is random, the mean over draws is held against it.
    attention, draws, most_tokens, options: as `fidelity` takes them.

    Raises `ValueError` where `fidelity` does, with the layer's name, where there is no layer, and for a
    threshold that is none.
    """
    if not 0 < threshold < inf:
        raise ValueError(f"threshold is a relative error, a positive number, not {threshold!r}")
    measured: list[LayerFidelity] = []
    for place, (layer, q, k, v, valid, causal, scale) in enumerate(layers):
        try:
            result = fidelity(
                attention,
                q,
                k,
                v,
                valid=valid,
                causal=causal,
                scale=scale,
                draws=draws,
                most_tokens=most_tokens,
                layer=place,
                **options,
            )
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
        error = result.relative_error
        bears = error is not None and error.mean <= threshold
        measured.append(LayerFidelity(layer=layer, bears=bears, fidelity=result))
    if not measured:
        raise ValueError("there is no layer with softmax attention to measure on")
    return ModelFidelity(
        attention=measured[0].fidelity.attention, threshold=threshold, layers=tuple(measured)
    )
