"""What a network must be for several ranks to share its sequences."""

from collections.abc import Iterable

from subquad.mechanism import Mechanism
from subquad.nn.documents import Documents
from subquad.nn.layers.layer import Layer
from subquad.registry import catalog


def names() -> list[str]:
    """The mechanisms with which several ranks can share a sequence."""
    return [name for name, mechanism in catalog().items() if mechanism.traits.exchange]


def require_shareable(layers: Iterable[Layer], documents: Documents | None) -> None:
    """Raise `ValueError` where tokens would meet that no rank holds both of."""
    if documents is not None:
        raise ValueError("ranks share a row that is one document: leave out documents or shards")
    for layer in layers:
        if not layer.shareable:
            raise ValueError(
                f"{layer.traits.name!r} mixes tokens beside its attention, and ranks cannot share its "
                f"sequences: take a network of mechanisms alone, of {', '.join(names())}"
            )
        for mechanism in layer.mechanisms():
            require_exchange(mechanism)


def require_exchange(mechanism: Mechanism) -> None:
    """Raise `ValueError` for a mechanism that needs the whole sequence in one process."""
    if not mechanism.traits.exchange:
        raise ValueError(
            f"{mechanism.traits.name!r} needs the whole sequence in one process, since what a token sees "
            "follows neither from states nor from the edges of its neighbours: take one of "
            f"{', '.join(names())}"
        )
