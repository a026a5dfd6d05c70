"""A trained model with all that is needed to classify new histories."""

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch

from subquad.experiments.spec import Fit
from subquad.nn import export as files
from subquad.nn.classifier import SequenceClassifier
from subquad.tasks.encoding import Encoding
from subquad.tasks.events import EventData
from subquad.tasks.target import Target

AT_ONCE = 64  # histories


@dataclass(frozen=True)
class Trained:
    """A model, how events become its inputs, and what its outputs mean."""

    model: SequenceClassifier
    encoding: Encoding
    target: Target
    length: int  # events of a history that count, the latest
    fit: dict[str, Any]  # the spec of the run that trained it

    def predict(self, events: pl.DataFrame, *, until: datetime | date | float | None = None) -> pl.DataFrame:
        """One row for each entity in `events`, in order of the entities' names.

        `events` has the columns that training had, one event a row, in any order. `until` is the moment
        from which the future is asked about, where training had such cut-offs (`churn` and `spend`).
        The columns returned are the entity's and, for two classes, "probability" (of the second); for
        more, "class" and its "probability"; for a regression, "value".

        Raises `subquad.tasks.DataError` for events that cannot be read as training read them.
        """
        entities, inputs = self.encoding.batch(events, self.length, until=until)
        self.model.eval()
        pieces = zip(*(part.split(AT_ONCE) for part in inputs), strict=True)
        with torch.inference_mode():
            output = torch.cat([self.model(*piece) for piece in pieces]).float().numpy()
        found = {self.encoding.entity: pl.Series(entities, dtype=pl.String)}
        if self.target.kind == "regression":
            return pl.DataFrame(found | {"value": self.target.restored(output)})
        probabilities = self.target.probabilities(output)
        if self.target.kind == "binary":
            return pl.DataFrame(found | {"probability": probabilities[:, 1]})
        classes = [self.target.classes[place] for place in probabilities.argmax(1)]
        return pl.DataFrame(found | {"class": classes, "probability": probabilities.max(1)})


def export(model: SequenceClassifier, data: EventData, spec: Fit, folder: Path) -> None:
    """Write a model so that `load` finds all it needs; nothing is pickled."""
    extra = {
        "encoding": data.encoding.to_json(),
        "target": data.target.to_json(),
        "length": spec.length,
        "fit": spec.to_json(),
    }
    files.save(model, folder, extra=extra)


def load(folder: str | Path) -> Trained:
    """The trained model that a comparison left in DIR/models/KEY.

    Raises `ValueError` where the folder holds none.
    """
    model, extra = files.read(Path(folder))
    try:
        return Trained(
            model.eval(),
            Encoding.from_json(extra["encoding"]),
            Target.from_json(extra["target"]),
            extra["length"],
            extra["fit"],
        )
    except KeyError as missing:
        raise ValueError(
            f"{str(folder)!r} holds a model without its {missing}: not one that `compare` wrote"
        ) from None
