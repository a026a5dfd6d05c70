"""Text: is a film review favourable? By bytes, or by the tokens of a tokenizer trained on them.

The reviews are those of IMDb (Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis"), asked as
in the Long Range Arena (Tay et al. 2020): a review is its bytes in UTF-8, `<br />` among them, cut at 1,000
or 4,000. A byte's number is its value, and no byte stands for padding.

The Arena judges on test what it also chooses by. Here a tenth of training is for validation
(`subquad.tasks.published`), and training reviews that a model would read in test, too, are left out: in
IMDb 123 of 25,000 at full length, and some more the shorter they are cut; `summary` says how many.

Tokens are those of a byte-pair encoding, trained on the whole reviews of the training split; it merges
bytes, so that no text is beyond it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Integer
from torch import Tensor

from subquad.fields import SPLITS, Inputs, Split, Tokens
from subquad.objectives import Classification
from subquad.task import InputEncoding, TaskTraits
from subquad.tasks.errors import DataError
from subquad.tasks.preparable import DataPart, Preparable, in_one_part, splits_of
from subquad.tasks.published import INSTALL, Published, chosen, require_sizes
from subquad.tasks.sequences import Reader, SequenceData, Sequences, padded

BYTES = 256
TOKENS = ("bytes", "bpe")
WORD = re.compile(r"\w+")
IMDB = Published(
    task="text",
    file="imdb/imdb_labelled.parquet",
    column="text",
    hub="stanfordnlp/imdb",
    hub_column="text",
    classes=2,
)


@dataclass(frozen=True, kw_only=True)
class TextEncoding(InputEncoding):
    """How texts become ids.

    `tokenizer`: a tokenizer of the package tokenizers, as its JSON. None: bytes.
    """

    tokenizer: str | None = None

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=BYTES if self.tokenizer is None else self.bpe.get_vocab_size())

    @cached_property
    def bpe(self) -> Any:
        """The tokenizer, ready to use. Raises `DataError` where it is none."""
        require_tokenizers()
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.tokenizer or "")
        except Exception as error:  # the package raises no narrower one
            raise DataError(f"tokenizer: cannot be read: {str(error).splitlines()[0]}") from error

    def batch(
        self, inputs: Sequence[str], length: int, *, until: Any = None
    ) -> tuple[pl.Series, Inputs, Bool[Tensor, "b t"]]:
        """Texts are cut at `length`, as in training. Raises `DataError` for an empty one."""
        if until is not None:
            raise DataError("texts have no moment: leave until= out")
        rows = self.ids(inputs, length)
        for place, row in enumerate(rows):
            if not len(row):
                raise DataError(f"text {place} is empty: leave it out")
        ids, valid = padded(rows)
        return pl.Series("text", inputs), (ids,), valid

    def ids(self, texts: Sequence[str], length: int) -> list[Integer[np.ndarray, " t"]]:
        """The first `length` of each text."""
        if self.tokenizer is None:
            return [np.frombuffer(text.encode()[:length], np.uint8) for text in texts]
        return [np.array(read.ids[:length], np.int32) for read in self.bpe.encode_batch(list(texts))]

    def words(self, ids: Integer[np.ndarray, " t"]) -> list[str]:
        """What stands in a review, for a bag of words: words, or tokens where it is read by these."""
        if self.tokenizer is None:
            return WORD.findall(ids.astype(np.uint8).tobytes().decode(errors="ignore").lower())
        return [str(token) for token in ids.tolist()]


class Text(Preparable):
    """See the module.

    `train`, `validation`, `test`: reviews of each split at most.
    `cut`: bytes or tokens of a review that are kept, its first.
    `tokens`: "bytes" or "bpe".
    `vocabulary`: tokens of the byte-pair encoding; what has no place in "bytes".
    """

    traits = TaskTraits(
        name="text",
        description="is a film review favourable? by bytes or byte-pair tokens (IMDb; Long Range Arena)",
        targets=("sentiment",),
        unit="token",
        length=16_384,
        source="https://ai.stanford.edu/~amaas/data/sentiment/ (Maas et al. 2011)",
        sizes={
            "quick": {"train": 4_000, "validation": 400, "test": 1_000, "cut": 256},
            "small": {"train": 20_000, "validation": 1_000, "test": 5_000},
            "full": {"cut": 4_000},
        },
    )
    encoding = TextEncoding

    def __init__(
        self,
        *,
        train: int = 25_000,
        validation: int = 2_500,
        test: int = 25_000,
        cut: int = 1_000,
        tokens: str = "bytes",
        vocabulary: int = 4_096,
    ) -> None:
        self.sizes = dict(zip(SPLITS, (train, validation, test), strict=True))
        require_sizes("text", self.sizes)
        require_reading("text", cut=cut, tokens=tokens, vocabulary=vocabulary)
        self.cut, self.tokens, self.vocabulary = cut, tokens, vocabulary

    def read_content(self) -> str:
        return IMDB.content()

    def parts(self, before: Iterable[DataPart] = ()) -> Iterator[DataPart]:
        if self.tokens == "bpe":
            require_tokenizers()
        published = IMDB.read()
        halves = {"train": published.train, "validation": published.train, "test": published.test}
        choice = chosen(
            [text.encode() for text in published.train.inputs],
            [text.encode() for text in published.test.inputs],
            self.sizes,
            length=self.cut,  # as many tokens are no fewer bytes
        )
        texts = {split: [halves[split].inputs[place] for place in choice.places[split]] for split in SPLITS}
        encoding = trained_encoding(texts["train"], tokens=self.tokens, vocabulary=self.vocabulary)
        splits: dict[Split, Sequences] = {
            split: Sequences.of(
                encoding.ids(texts[split], self.cut), halves[split].label[choice.places[split]]
            )
            for split in SPLITS
        }
        yield in_one_part(
            splits,
            {
                "local": published.local,
                "left out": dict(choice.left_out),
                "tokenizer": encoding.tokenizer,
            },
        )

    def dataset(self, made: DataPart, *, target: str | None, length: int | None) -> SequenceData:
        """Cut by the task's own option, so that the data are the same whatever `length` a model reads."""
        encoding = TextEncoding(tokenizer=made.facts["tokenizer"])
        return SequenceData(
            splits=splits_of(made),
            fields=encoding.fields,
            target="sentiment",
            objective=Classification(classes=("negative", "positive")),
            readers={"bag of words": bag_of_words(encoding.words)},
            encoding=encoding,
            about={
                "task": self.traits.name,
                "question": "is the review favourable?",
                "data": "IMDb" + (" from SUBQUAD_DATA" if made.facts["local"] else f", {IMDB.hub}"),
                "tokens": self.tokens,
                "vocabulary": encoding.fields.vocabulary,
                "cut": self.cut,
                "training reviews left out": made.facts["left out"],
            },
        )


def require_reading(task: str, *, cut: int, tokens: str, vocabulary: int) -> None:
    """Raise `DataError` where texts cannot be read so."""
    if cut < 1:
        raise DataError(f"{task}: cut must be at least 1, not {cut}")
    if tokens not in TOKENS:
        raise DataError(f"{task}: tokens must be one of {', '.join(map(repr, TOKENS))}, not {tokens!r}")
    if vocabulary <= BYTES:
        raise DataError(f"{task}: vocabulary must be above {BYTES}, the bytes, not {vocabulary}")


def require_tokenizers() -> None:
    """Raise `DataError` where the package is missing."""
    if find_spec("tokenizers") is None:
        raise DataError(f"tokens='bpe' needs the package tokenizers, which is not installed: {INSTALL}")


def trained_encoding(texts: Iterable[str], *, tokens: str, vocabulary: int) -> TextEncoding:
    """Bytes, or the tokens of a byte-pair encoding that is trained on the texts."""
    return TextEncoding(tokenizer=trained_tokenizer(texts, vocabulary) if tokens == "bpe" else None)


def trained_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """A byte-pair encoding of so many tokens, fewer where the texts have no more, as JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe.to_str()


def bag_of_words(words: Callable[[Any], list[str]], *, quantity: bool = False) -> Reader:
    """A regression on how often each word occurs, against how many texts have it (TF-IDF): a logistic one of
    classes, a ridge regression of a quantity.

    `words`: those of a text's ids, or of both ids of a pair.
    """

    def read(train: Sequences, test: Sequences) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline

        def counted(example: Any) -> list[str]:
            return words(example) or [""]  # where no text has a word, there is nothing to count otherwise

        weights = TfidfVectorizer(analyzer=counted, sublinear_tf=True)  # pyright: ignore[reportArgumentType]
        model = make_pipeline(weights, Ridge() if quantity else LogisticRegression(max_iter=1000))
        model.fit(examples(train), train.answer)
        return model.predict(examples(test)) if quantity else model.decision_function(examples(test))

    return read


def examples(part: Sequences) -> list[Any]:
    """The ids of each, or of a pair's two."""
    texts = part.each
    return texts if part.pair is None else [(texts[first], texts[second]) for first, second in part.pair]
