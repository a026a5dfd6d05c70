"""Texts from a trained model of bytes: whole, or piece by piece as they come.

The model reads at each place the byte before it, and `OUTSIDE` where a document begins (`tasks/windows.py`):
a prompt is read after that, so that an empty one asks for a document's beginning.
"""

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from subquad.nn.generation import Decoder
from subquad.tasks.windows import OUTSIDE

Text = str | bytes

utf8 = getincrementaldecoder("utf-8")


class ScoredText(NamedTuple):
    """One of the best ways to go on from a prompt."""

    text: str
    tokens: int  # bytes of it
    score: float  # log p / tokens ** alpha


class TextStream:
    """Texts as a decoder goes on with them: an iterator over the next piece of each, joined they are whole.

    Pieces are of whole characters, some of none; bytes that form no character are U+FFFD.

    decoder: what goes on.
    lengths: bytes of each text so far.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        rows = len(decoder.ids)
        self.lengths = [0] * rows
        self._pieces = self._read([utf8("replace") for _ in range(rows)])

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        return next(self._pieces)

    def _read(self, readers: list[IncrementalDecoder]) -> Iterator[list[str]]:
        for ids, valid in self.decoder:
            new = [bytes([one] * real) for one, real in zip(ids.tolist(), valid.tolist(), strict=True)]
            self.lengths = [length + len(one) for length, one in zip(self.lengths, new, strict=True)]
            yield [reader.decode(one) for reader, one in zip(readers, new, strict=True)]
        yield [reader.decode(b"", final=True) for reader in readers]


def prompt_ids(prompts: Sequence[Text]) -> list[list[int]]:
    """What the model reads of prompts."""
    return [[OUTSIDE, *as_bytes(prompt)] for prompt in prompts]


def as_bytes(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else text


def as_text(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")
