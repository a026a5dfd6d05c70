"""Matching: do two long texts belong together? Each is read alone, and both are compared at the end.

Document retrieval of the Long Range Arena (Tay et al. 2020) asks whether one of two papers of the ACL
Anthology Network cites the other (Radev et al. 2013, "The ACL anthology network corpus"). A model has one
encoder for both texts and sees neither while it reads the other; what it answers follows from the averages
over their tokens, by the head of the Arena's paper. (Its released code has neither that head nor that
average.)

Pairs are those of the Arena, where a user has its archive; citations among 1,673 papers that come with their
texts (Yasunaga et al. 2019, "ScisummNet"); or reviews of the same film (IMDb). How they are made, and kept
apart between splits, is said in `subquad.tasks.text_pairs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.fields import SPLITS, Inputs, Pair
from subquad.objectives import Classification
from subquad.task import InputEncoding, Task, TaskTraits
from subquad.tasks.errors import DataError
from subquad.tasks.published import require_sizes
from subquad.tasks.sequences import Reader, SequenceData, Sequences
from subquad.tasks.text import TextEncoding, require_reading, require_tokenizers, trained_encoding
from subquad.tasks.text_pairs import SOURCES, Corpus, Pairs


@dataclass(frozen=True, kw_only=True)
class PairedTexts(InputEncoding):
    """How pairs of texts become ids.

    `tokenizer`: a tokenizer of the package tokenizers, as its JSON. None: bytes.
    """

    tokenizer: str | None = None

    @cached_property
    def texts(self) -> TextEncoding:
        """How each of them does."""
        return TextEncoding(tokenizer=self.tokenizer)

    @property
    def fields(self) -> Pair:
        return Pair(side=self.texts.fields)

    def batch(
        self, inputs: Sequence[Sequence[str]], length: int, *, until: Any = None
    ) -> tuple[pl.Series, Inputs, Bool[Tensor, "b 2 t"]]:
        """Pairs of texts, each of which is cut at `length`, as in training. Raises `DataError` for another
        number of texts, or an empty one.
        """
        for place, pair in enumerate(inputs):
            if isinstance(pair, str) or len(pair) != 2 or not all(pair):
                raise DataError(f"pair {place} should be two texts that are not empty, not {pair!r}")
        _, ids, valid = self.texts.batch([text for pair in inputs for text in pair], length, until=until)
        sides = tuple(part.unflatten(0, (-1, 2)) for part in ids)
        return pl.Series("pair", [list(pair) for pair in inputs]), sides, valid.unflatten(0, (-1, 2))


class Matching(Task):
    """See the module.

    `pairs`: "aan" (papers, of the archive of the Long Range Arena), "aan_mini" (papers) or "films" (reviews).
    `train`, `validation`, `test`: pairs of each split at most.
    `cut`: bytes or tokens of a text that are kept, its first.
    `tokens`: "bytes" or "bpe".
    `vocabulary`: tokens of the byte-pair encoding; what has no place in "bytes".
    """

    traits = TaskTraits(
        name="matching",
        description="do two texts belong together? papers that cite, reviews of a film (Long Range Arena)",
        targets=("match",),
        unit="token",
        length=16_384,
        source="https://github.com/WING-NUS/scisumm-corpus (Yasunaga et al. 2019), and others by `pairs`",
        sizes={
            "quick": {"train": 4_000, "validation": 400, "test": 1_000, "cut": 256},
            "small": {"train": 20_000, "validation": 1_000, "test": 5_000},
            "full": {"cut": 4_000},
        },
    )
    encoding = PairedTexts

    def __init__(
        self,
        *,
        pairs: str = "films",
        train: int = 150_000,
        validation: int = 20_000,
        test: int = 50_000,
        cut: int = 1_000,
        tokens: str = "bytes",
        vocabulary: int = 4_096,
    ) -> None:
        if pairs not in SOURCES:
            raise DataError(f"matching: pairs must be one of {', '.join(map(repr, SOURCES))}, not {pairs!r}")
        self.sizes = dict(zip(SPLITS, (train, validation, test), strict=True))
        require_sizes("matching", self.sizes)
        require_reading("matching", cut=cut, tokens=tokens, vocabulary=vocabulary)
        self.pairs, self.cut, self.tokens, self.vocabulary = pairs, cut, tokens, vocabulary

    def load(self, *, target: str | None = None, length: int | None = None) -> SequenceData:
        """Cuts by its own option, so that whatever `length` a model reads, the data are the same ones."""
        if self.tokens == "bpe":
            require_tokenizers()
        corpus = SOURCES[self.pairs](self.cut)
        chosen = {split: corpus.splits[split].first(self.sizes[split]) for split in SPLITS}
        for split, part in chosen.items():
            if not len(part.answer):
                raise DataError(f"matching: no pair is left for {split}; {self.pairs!r} needs more texts")
        texts = [corpus.texts[place] for place in by_appearance(chosen["train"].side)[0]]
        trained = trained_encoding(texts, tokens=self.tokens, vocabulary=self.vocabulary)
        encoding = PairedTexts(tokenizer=trained.tokenizer)
        return SequenceData(
            splits={split: encoded(corpus, chosen[split], encoding, self.cut) for split in SPLITS},
            fields=encoding.fields,
            target="match",
            objective=Classification(classes=("no", "yes")),
            readers={"tf-idf cosine": cosine(encoding)},
            encoding=encoding,
            about={
                "task": self.traits.name,
                **corpus.about,
                "pairs": self.pairs,
                "tokens": self.tokens,
                "vocabulary": encoding.texts.fields.vocabulary,
                "cut": self.cut,
                "texts of test": overlap(corpus, chosen["train"], chosen["test"], self.cut),
            },
        )


def encoded(corpus: Corpus, part: Pairs, encoding: PairedTexts, cut: int) -> Sequences:
    """A split, with the texts that stand in it alone, as they come."""
    places, pair = by_appearance(part.side)
    _, group = by_appearance(part.group)
    ids = encoding.texts.ids([corpus.texts[place] for place in places], cut)
    return Sequences.of(ids, part.answer, pair=pair, group=group)


def by_appearance(values: Int[np.ndarray, "..."]) -> tuple[list[int], Int[np.ndarray, "..."]]:
    """The values in the order in which they come first, and which of these stands at each place."""
    number = {value: number for number, value in enumerate(dict.fromkeys(values.ravel().tolist()))}
    return list(number), np.array([number[value] for value in values.ravel().tolist()]).reshape(values.shape)


def overlap(corpus: Corpus, train: Pairs, test: Pairs, cut: int) -> dict[str, int]:
    """How many texts there are in test, and how many of them stand in training, too."""
    tested, trained = (
        {corpus.texts[place].encode()[:cut] for place in np.unique(part.side)} for part in (test, train)
    )
    return {"all": len(tested), "also in training": len(tested & trained)}


def cosine(encoding: PairedTexts) -> Reader:
    """How alike the words of both texts are (TF-IDF), less the score from which training has yes.

    Words weigh by how few texts of training have them: those that none has, most.
    """

    def read(train: Sequences, test: Sequences) -> np.ndarray:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

        words = CountVectorizer(analyzer=encoding.texts.words)  # pyright: ignore[reportArgumentType]
        counts = words.fit_transform([*train.each, *test.each])
        ours, theirs = counts[: len(train.stop)], counts[len(train.stop) :]
        weights = TfidfTransformer(sublinear_tf=True).fit(ours)

        def alike(part: Sequences, counts: Any) -> Float[np.ndarray, " e"]:
            assert part.pair is not None
            texts: Any = weights.transform(counts)
            first, second = (texts[side] for side in part.pair.T)
            return np.asarray(first.multiply(second).sum(1)).ravel()

        return alike(test, theirs) - threshold(alike(train, ours), train.answer)

    return read


def threshold(score: Float[np.ndarray, " n"], answer: Int[np.ndarray, " n"]) -> float:
    """The score from which yes is right most often; among equals the lowest."""
    by_score = np.argsort(score, kind="stable")
    score, answer = score[by_score], answer[by_score]
    right = np.concatenate([[0], np.cumsum(1 - 2 * answer)])  # more than if all were yes
    between = np.concatenate([[score[0] - 1], (score[1:] + score[:-1]) / 2, [score[-1] + 1]])
    right[1:-1][score[1:] == score[:-1]] = right.min()
    return float(between[right.argmax()])
