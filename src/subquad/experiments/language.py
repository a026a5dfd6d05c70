"""A trained model of texts, and how well it predicts new ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from subquad.experiments.streams import StreamReader
from subquad.fields import Batch
from subquad.nn.model import SequenceModel
from subquad.tasks import DataError
from subquad.tasks.documents import Documents
from subquad.tasks.language import LanguageQuestion
from subquad.tasks.windows import Windows

BATCH_SIZE = 16  # windows


@dataclass(frozen=True)
class LanguageModel:
    """A model, and what it was asked for."""

    model: SequenceModel
    question: LanguageQuestion
    length: int  # bytes that it reads at once, of texts of any length where its state is carried
    fit: dict[str, Any]  # the spec of the run that trained it

    def predict(self, inputs: Any) -> pl.DataFrame:
        """One row for each of `inputs`, texts or bytes, in their order: "text", "bytes", how many were asked
        for, and what the model needs for each of them, "bits per byte" or "bits per masked byte". Texts are
        read as on test.

        Raises `subquad.tasks.DataError`, a `ValueError`, where there is no text or an empty one.
        """
        texts: Sequence[str | bytes] = inputs
        if not texts:
            raise DataError("there is no text: give at least one")
        for place, text in enumerate(texts):
            if not text:
                raise DataError(f"text {place} is empty: leave it out")
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        windows = Windows(Documents.of(encoded), self.length)
        scorer = self.question.objective.scorer()
        self.model.eval()
        with torch.inference_mode():
            for output, batch in self.read(windows):
                scorer.add(output.float(), batch)
        bits, count = (np.bincount(windows.document, each) for each in scorer.totals())
        label = self.question.objective.metric_label
        return pl.DataFrame({"text": texts, "bytes": count.astype(np.int64), label: bits / count})

    def read(self, windows: Windows) -> Iterator[tuple[Tensor, Batch]]:
        """What the model gives out for all windows, batch by batch, read as in training."""
        order = {"size": BATCH_SIZE, "seed": 0, "epoch": 0, "shuffle": False}
        if self.fit["training"].get("carry"):
            stream = StreamReader(self.model)
            for batch in windows.streams(self.question.ask, **order):
                yield stream(batch), batch
        else:
            for batch in windows.batches(self.question.ask, length=self.length, **order):
                yield self.model(batch.inputs, None if batch.valid.all() else batch.valid), batch
