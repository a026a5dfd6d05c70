"""A trained model with all that is needed to classify new histories."""

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import validated
from subquad.experiments.spec import Fit
from subquad.nn import export as files
from subquad.nn.classifier import ClassifierConfig, SequenceClassifier
from subquad.recorded import Positive
from subquad.tasks.encoding import Encoding
from subquad.tasks.events import EventData
from subquad.tasks.metrics import METRICS
from subquad.tasks.source import Table
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

    def predict(self, events: Table, *, until: datetime | date | float | None = None) -> pl.DataFrame:
        """One row for each entity in `events`, in order of the entities.

        `events` is a Polars frame, lazy or not, a pandas frame, an Arrow table, or the path of a CSV or
        Parquet file. It has the columns that training had, one event a row, in any order; other columns do
        not matter. `until` is the moment from which the future is asked about, where training had such
        cut-offs (`churn` and `spend`).

        The columns returned are the entity's, of the type that it has in `events` (text, if that is a CSV),
        and for classes "class", the most probable one, and "probability of NAME" for each of
        `target.classes`; for a regression "value". Beside an entity column with such a name it is
        "predicted class" and so on.

        Raises `subquad.tasks.DataError`, a `ValueError`, for events that cannot be read as training read
        them.
        """
        entities, inputs = self.encoding.batch(events, self.length, until=until)
        self.model.eval()
        pieces = zip(*(part.split(AT_ONCE) for part in inputs), strict=True)
        with torch.inference_mode():
            output = torch.cat([self.model(*piece) for piece in pieces]).float().numpy()
        answers = pl.DataFrame([entities, *self._answers(output)])
        return answers[entities.arg_sort()]

    def _answers(self, output: Float[np.ndarray, "n k"]) -> list[pl.Series]:
        if self.target.kind == "regression":
            return [pl.Series(self._free("value"), self.target.restored(output))]
        chances = self.target.probabilities(output)
        likeliest = [self.target.classes[place] for place in chances.argmax(1)]
        return [
            pl.Series(self._free("class"), likeliest),
            *(
                pl.Series(self._free(f"probability of {name}"), chances[:, place])
                for place, name in enumerate(self.target.classes)
            ),
        ]

    def _free(self, name: str) -> str:
        """The name of a column of answers, where the entity's has another."""
        return f"predicted {name}" if name == self.encoding.entity else name


def export(model: SequenceClassifier, data: EventData, spec: Fit, folder: Path) -> None:
    """Write a model so that `load_model` finds all it needs; nothing is pickled."""
    extra = {
        "encoding": data.encoding.to_json(),
        "target": data.target.to_json(),
        "length": spec.length,
        "fit": spec.to_json(),
    }
    files.save(model, folder, extra=extra)


class Beside(TypedDict):
    """What `export` writes beside a model."""

    encoding: Encoding
    target: Target
    length: Positive
    fit: dict[str, Any]


def load_model(folder: str | Path) -> Trained:
    """The trained model that a comparison left in DIR/models/KEY.

    Raises `ValueError` where the folder holds none, or what it holds does not go together.
    """
    model, extra = files.read(Path(folder))
    try:
        beside = validated(Beside, extra)
        check_together(model.config, beside["encoding"], beside["target"])
    except ValueError as error:
        raise ValueError(f"{str(folder)!r} holds a model that `compare` did not write: {error}") from None
    return Trained(model, **beside)


def check_together(config: ClassifierConfig, encoding: Encoding, target: Target) -> None:
    """Raise `ValueError` where an encoding's inputs or a target's outputs are not those of the model."""
    if len(encoding.categorical) != len(encoding.vocabularies) or encoding.sizes != config.vocabularies:
        raise ValueError(
            f"encoding.vocabularies: have {list(encoding.sizes)} ids, and the model was built for "
            f"{list(config.vocabularies)}"
        )
    for name in ("channels", "mean", "deviation"):
        if len(getattr(encoding, name)) != config.numeric:
            raise ValueError(
                f"encoding.{name}: are {len(getattr(encoding, name))}, and the model takes {config.numeric}"
            )
    if min(*encoding.deviation, target.scale) <= 0:
        raise ValueError("encoding.deviation, target.scale: should be above zero")
    if target.kind not in METRICS:
        raise ValueError(f"target.kind: should be one of {', '.join(METRICS)}, not {target.kind!r}")
    if target.outputs != config.outputs or (target.kind == "binary" and len(target.classes) != 2):
        raise ValueError(
            f"target.classes: are {len(target.classes)}, and the model gives {config.outputs} outputs"
        )
