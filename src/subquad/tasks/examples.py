"""Which part of a history each example has seen, and its answer."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real

from subquad.tasks.encoding import Histories


@dataclass(frozen=True)
class Examples:
    """Which events each example has seen, when it is asked, and the answer."""

    entity: Int[np.ndarray, " n"]  # place in Histories.entities
    start: Int[np.ndarray, " n"]  # its events are start .. stop - 1
    stop: Int[np.ndarray, " n"]
    until: Float[np.ndarray, " n"]  # the end of the history, which ages count from
    target: Real[np.ndarray, " n"]  # class, or quantity in its own units

    @classmethod
    def before(
        cls,
        histories: Histories,
        entities: Iterable[str],
        until: Float[np.ndarray, " n"],
        target: Real[np.ndarray, " n"],
    ) -> "Examples":
        """An example for each of these entities: its events before a moment, of which there are some.

        Where the moment is infinite, it is about all events, and asked at the last.
        """
        place = {entity: number for number, entity in enumerate(histories.entities)}
        entity = np.array([place[name] for name in entities])
        start, last = histories.start[entity], histories.stop[entity]
        stop = np.array(
            [
                first + np.searchsorted(histories.time[first:behind], end, side="left")
                for first, behind, end in zip(start, last, until, strict=True)
            ]
        )
        return cls(entity, start, stop, np.where(np.isinf(until), histories.time[stop - 1], until), target)

    def __len__(self) -> int:
        return len(self.target)
