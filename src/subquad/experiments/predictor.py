"""A trained model with all that is needed to answer for new inputs."""

from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

import polars as pl
import torch
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad import tasks
from subquad.documents import validated
from subquad.experiments.language import LanguageModel
from subquad.experiments.spec import Fit
from subquad.fields import Fields
from subquad.nn import export as files
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.objectives import OBJECTIVES, Objective, Supervised
from subquad.recorded import FitSpec, Positive
from subquad.task import Dataset, InputEncoding
from subquad.tasks.language import QUESTIONS, LanguageData

T = TypeVar("T")

BATCH_SIZE = 64  # sequences


@dataclass(frozen=True)
class Predictor:
    """A model, how raw inputs become its own, and what its outputs mean."""

    model: SequenceModel
    encoding: InputEncoding
    objective: Supervised
    length: int  # tokens of a sequence that count
    fit: dict[str, Any]  # the spec of the run that trained it

    def predict(self, inputs: Any, *, until: datetime | date | float | None = None) -> pl.DataFrame:
        """One row for each sequence in `inputs`.

        Where the task reads events, `inputs` is a Polars frame, lazy or not, a pandas frame, an Arrow table,
        or the path of a CSV or Parquet file. It has the columns that training had, one event a row, in any
        order; other columns do not matter. Rows are in order of the entities. `until` is the moment from
        which the future is asked about, where training had such cut-offs (`churn` and `spend`). Where the
        task reads texts, pairs of them or lists of tokens, `inputs` is a list of these, and rows are in its
        order.

        The columns returned are what a row is called (of events the entity, of the type that it has in
        `inputs`; text, if that is a CSV), and for classes "class", the most probable one, and "probability of
        NAME" for each; for labels at tokens "classes", a list of them; for a regression "value". Beside an
        entity column with such a name it is "predicted class" and so on.

        Raises `subquad.tasks.DataError`, a `ValueError`, for inputs that cannot be read as training read
        them.
        """
        names, tensors, valid = self.encoding.batch(inputs, self.length, until=until)
        self.model.eval()
        pieces = zip(
            zip(*(part.split(BATCH_SIZE) for part in tensors), strict=True),
            valid.split(BATCH_SIZE),
            strict=True,
        )
        with torch.inference_mode():
            output = torch.cat([self.model(*piece) for piece in pieces]).float().numpy()
        columns = [
            pl.Series(f"predicted {name}" if name == names.name else name, column)
            for name, column in self.objective.answers(output, valid.numpy()).items()
        ]
        return pl.DataFrame([names, *columns])


def export(model: SequenceModel, data: Dataset, spec: Fit, folder: Path) -> None:
    """Write a model so that `load_model` finds all it needs; nothing is pickled."""
    extra = {
        "encoding": None if data.encoding is None else asdict(data.encoding),
        "objective": data.objective.to_json(),
        "target": data.target,
        "length": spec.data.length,
        "fit": spec.to_json(),
    }
    files.save(model, folder, extra=extra)


class Extra(TypedDict):
    """What `export` writes beside a model."""

    encoding: dict[str, Any] | None
    objective: dict[str, Any]
    target: str
    length: Positive
    fit: FitSpec


def load_model(folder: str | Path) -> Predictor | LanguageModel:
    """The trained model that a comparison left in DIR/models/KEY. It answers with `predict`.

    Raises `ValueError` where the folder holds none, what it holds does not go together, or the model's task
    takes no new inputs.
    """
    model, extra = files.read(Path(folder))
    try:
        stored = validated(Extra, extra)
        for question in QUESTIONS.values():
            if stored["objective"] == question.objective.to_json():
                require_matching(model.config, LanguageData.fields, question.objective)
                return LanguageModel(model, question, stored["length"], extra["fit"])
        encoding = read_encoding(stored, model.config.fields)
        objective = read_objective(stored["objective"])
        require_matching(model.config, fields_of(encoding), objective)
    except ValueError as error:
        raise ValueError(f"{str(folder)!r} holds a model that `compare` did not write: {error}") from None
    return Predictor(model, encoding, objective, stored["length"], extra["fit"])


def read_encoding(stored: Extra, made: Fields) -> InputEncoding:
    """The encoding, of the type that its task has; of several, the one with most of what is written, and
    whose inputs are of the model's kind.
    """
    cls = tasks.find(stored["fit"]["data"]["task"])
    if cls.encoding is None or stored["encoding"] is None:
        raise ValueError(f"models of the task {cls.traits.name!r} take no new inputs")
    written = stored["encoding"].keys()
    kinds: tuple[Any, ...] = get_args(cls.encoding) or (cls.encoding,)
    named = {kind: len(written & {field.name for field in fields(kind)}) for kind in kinds}
    alike = [
        part("encoding", kind, stored["encoding"]) for kind in kinds if named[kind] == max(named.values())
    ]
    return next((each for each in alike[1:] if type(each.fields) is type(made)), alike[0])


def read_objective(document: dict[str, Any]) -> Supervised:
    options = dict(document)
    if (kind := options.pop("kind", None)) not in OBJECTIVES:
        raise ValueError(f"objective.kind: should be one of {', '.join(OBJECTIVES)}, not {kind!r}")
    return part("objective", OBJECTIVES[kind], options)


def part(name: str, kind: type[T], document: object) -> T:
    try:
        return validated(kind, document)
    except ValueError as error:
        raise ValueError(f"{name}.{str(error).removeprefix('it: ')}") from None


def fields_of(encoding: InputEncoding) -> Fields:
    try:
        return encoding.fields
    except ValueError as error:
        raise ValueError(f"encoding.{error}") from None


def require_matching(config: SequenceModelConfig, fields: Fields, objective: Objective) -> None:
    """Raise `ValueError` where the fields or an objective's outputs are not those of the model."""
    if fields != config.fields:
        raise ValueError(f"encoding: makes {fields}, and the model takes {config.fields}")
    if objective.readout != config.readout:
        raise ValueError(f"objective: takes {objective.readout}, and the model gives {config.readout}")
