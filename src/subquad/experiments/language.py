"""A trained model of texts, and how well it predicts new ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

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
    length: int  # bytes that it reads at once
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
            for batch in windows.batches(
                self.question.ask, size=BATCH_SIZE, length=self.length, seed=0, epoch=0, shuffle=False
            ):
                valid = None if batch.valid.all() else batch.valid
                scorer.add(self.model(batch.inputs, valid).float(), batch)
        bits, count = (np.bincount(windows.document, each) for each in scorer.totals())
        label = self.question.objective.metric_label
        return pl.DataFrame({"text": texts, "bytes": count.astype(np.int64), label: bits / count})
