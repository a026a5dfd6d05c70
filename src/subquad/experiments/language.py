"""A trained model of texts: how well it predicts new ones, and those that it generates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from subquad.config import SamplingConfig
from subquad.experiments.generation import (
    ScoredText,
    Text,
    TextStream,
    as_bytes,
    as_text,
    prompt_ids,
)
from subquad.experiments.streams import StreamReader
from subquad.fields import Batch
from subquad.nn.beams import beam_search
from subquad.nn.generation import SAMPLING, Decoder
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

    def stream(
        self,
        prompts: Sequence[Text] = ("",),
        *,
        tokens: int,
        sampling: SamplingConfig = SAMPLING,
        stop: Sequence[Text] = (),
        samples: int = 1,
    ) -> TextStream:
        """The texts that come after each prompt, `samples` of each, side by side, piece by piece.

        Raises `subquad.tasks.DataError`, a `ValueError`, where the model was not trained to go on, and
        `ValueError` as `subquad.nn.Decoder` does.

        prompts: beginnings of documents; an empty one is that of any.
        tokens: bytes after each prompt, at most.
        sampling: how the next byte is chosen.
        stop: texts after which one ends; they are its last.
        """
        self._require_next()
        stops = [as_bytes(text) for text in stop]
        return TextStream(
            Decoder(
                self.model, prompt_ids(prompts), tokens=tokens, sampling=sampling, stop=stops, samples=samples
            )
        )

    def generate(
        self,
        prompts: Sequence[Text] = ("",),
        *,
        tokens: int,
        sampling: SamplingConfig = SAMPLING,
        stop: Sequence[Text] = (),
        samples: int = 1,
    ) -> list[str]:
        """The same texts, whole."""
        pieces = self.stream(prompts, tokens=tokens, sampling=sampling, stop=stop, samples=samples)
        return ["".join(parts) for parts in zip(*pieces, strict=True)]

    def search(
        self,
        prompts: Sequence[Text] = ("",),
        *,
        tokens: int,
        beams: int,
        alpha: float = 0.0,
        stop: Sequence[Text] = (),
    ) -> list[list[ScoredText]]:
        """The likeliest ways to go on from each prompt that a beam search finds, from the first.

        prompts, tokens, stop: as in `stream`, with its errors.
        beams, alpha: as `subquad.nn.beam_search` takes them.
        """
        self._require_next()
        stops = [as_bytes(text) for text in stop]
        found = beam_search(
            self.model, prompt_ids(prompts), tokens=tokens, beams=beams, alpha=alpha, stop=stops
        )
        return [
            [
                ScoredText(as_text(ids[:n]), n, score)
                for ids, n, score in zip(*best, strict=True)
                if score > -torch.inf
            ]
            for best in zip(*(part.tolist() for part in found), strict=True)
        ]

    def _require_next(self) -> None:
        """Raise `DataError` unless the model was asked for the next byte."""
        if not self.question.objective.causal:
            raise DataError(
                f"the model was asked {self.question.text!r} and cannot go on from a text: take one that was "
                "trained with target=next"
            )
        self.model.eval()
