"""ListOps: the value of a nested expression over digits, such as [MAX 4 3 [MIN 2 3 ] 1 0 ].

Nangia and Bowman (2018), as the Long Range Arena makes it (Tay et al. 2020): a node is an operator with
probability 1/4, else a digit; at the greatest depth it always is a digit. An operator has 2 to 10 arguments.
MED is the middle value, or the mean of the middle two, cut to a whole number; SM the sum modulo 10. An
expression's length is one for each digit and two for each operator; expressions between 500 and 2,000, both
excluded, are kept, each once. 96,000 are for training, 2,000 for validation, 2,000 for test.

The Arena's own splits cannot be made again (they follow the order of a Python set). Here expressions come
from raw bits of PCG64, in the order in which they are drawn, so that everybody's are the same. What a model
has to beat: the commonest digit gives 17 %; the first symbol alone, the outermost operator, gives 36 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from subquad.fields import Inputs, Split, Tokens
from subquad.objectives import Classification, Kinds
from subquad.task import InputEncoding, TaskTraits
from subquad.tasks.errors import DataError
from subquad.tasks.generated import Generated
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData, Sequences, by_length

OPERATOR = 0.25  # probability
ARGUMENTS = (2, 10)
SYMBOLS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
MIN, MAX, MED, SM, END = range(10, 15)
DRAW_SIZE = 4096  # expressions drawn at a time


class Level(NamedTuple):
    """All nodes of one depth, of many expressions side by side."""

    symbol: Int[np.ndarray, " n"]  # digit or operator
    arguments: Int[np.ndarray, " n"]  # zero for a digit
    tree: Int[np.ndarray, " n"]  # which expression


@dataclass(frozen=True, kw_only=True)
class Expressions(InputEncoding):
    """How texts such as "[MAX 4 3 ]" become symbols; parentheses, which add nothing, may stand in them."""

    symbols: tuple[str, ...] = SYMBOLS

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=len(self.symbols))

    def batch(
        self, inputs: Sequence[str], length: int, *, until: Any = None
    ) -> tuple[pl.Series, Inputs, Bool[Tensor, "b t"]]:
        """Raises `DataError` for a text with another symbol, or longer than the model reads."""
        if until is not None:
            raise DataError("expressions have no moment: leave until= out")
        rows = [self.read(text) for text in inputs]
        for text, row in zip(inputs, rows, strict=True):
            if not 0 < len(row) <= length:
                raise DataError(
                    f"give expressions of 1 to {length:,} symbols, not {len(row):,}: {text[:60]!r}"
                )
        valid = torch.arange(max(map(len, rows), default=1)) < torch.tensor([[len(row)] for row in rows])
        ids = torch.zeros(valid.shape, dtype=torch.int64)
        ids[valid] = torch.tensor([symbol for row in rows for symbol in row])
        return pl.Series("expression", inputs), (ids,), valid

    def read(self, text: str) -> list[int]:
        place = {symbol: number for number, symbol in enumerate(self.symbols)}
        words = text.replace("(", " ").replace(")", " ").split()
        if unknown := [word for word in words if word not in place]:
            raise DataError(f"unknown symbol {unknown[0]!r}; there are {', '.join(self.symbols)}")
        return [place[word] for word in words]


class ListOps(Generated):
    """See the module.

    `train`, `validation`, `test`: expressions of each split.
    `depth`: levels of an expression at most.
    `above`, `below`: an expression's length lies between, both excluded.
    `seed`: of the generator.
    """

    traits = TaskTraits(
        name="listops",
        description="the value of a nested expression of MIN, MAX, MED and SM over digits (Long Range Arena)",
        targets=("value",),
        unit="symbol",
        length=2000,
        source="https://arxiv.org/abs/1804.06028, made by subquad",
        sizes={
            "quick": {"train": 4_000, "validation": 400, "depth": 5, "above": 20, "below": 128},
            "small": {"train": 20_000, "validation": 1_000, "depth": 7, "above": 100, "below": 512},
            "full": {},
        },
    )
    encoding = Expressions

    def __init__(
        self,
        *,
        train: int = 96_000,
        validation: int = 2_000,
        test: int = 2_000,
        depth: int = 10,
        above: int = 500,
        below: int = 2_000,
        seed: int = 0,
    ) -> None:
        self.sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test}
        if min(self.sizes.values()) < 1:
            raise DataError(
                f"train, validation and test must be at least 1, not {tuple(self.sizes.values())}"
            )
        if depth < 1 or seed < 0:
            raise DataError(f"depth must be at least 1 and seed at least 0, not {depth} and {seed}")
        if not 0 <= above < below - 1:
            raise DataError(f"no length lies between {above} and {below}")
        self.depth, self.above, self.below, self.seed = depth, above, below, seed

    def data(self, splits: dict[Split, Sequences]) -> SequenceData:
        return SequenceData(
            splits=splits,
            fields=Tokens(vocabulary=len(SYMBOLS)),
            target="value",
            objective=Classification(classes=tuple(map(str, range(10)))),
            readers={"first symbol": first_symbol},
            solve=value,
            sort=by_operator_and_length,
            encoding=Expressions(),
            about={
                "task": self.traits.name,
                "question": "the value of the expression",
                "inputs": list(SYMBOLS),
                "depth": self.depth,
                "seed": self.seed,
            },
        )

    def block(self, bits: RandomBits, missing: int) -> Sequences:
        """Expressions of fitting length."""
        levels = drawn(bits, depth=self.depth)
        sizes = measured(levels)
        fits = (sizes[0] > self.above) & (sizes[0] < self.below)
        return Sequences(*serialised(levels, sizes, fits), values(levels)[fits])

    def too_few(self, found: int, count: int) -> str:
        return (
            f"only {found:,} expressions of {count:,} found that are {self.depth} deep at most "
            f"and between {self.above:,} and {self.below:,} long: ask for fewer or for others"
        )


def drawn(bits: RandomBits, *, depth: int) -> list[Level]:
    """A block of expressions, level by level; the children of a level stand in the order of their parents."""
    levels = []
    tree = np.arange(DRAW_SIZE)
    for level in range(1, depth + 1):
        chance = bits.uniform(len(tree))
        operator = (chance < OPERATOR) if level < depth else np.zeros(len(tree), bool)
        symbol = (bits.uniform(len(tree)) * np.where(operator, 4, 10)).astype(np.int64) + MIN * operator
        low, high = ARGUMENTS
        arguments = operator * (low + (bits.uniform(len(tree)) * (high - low + 1)).astype(np.int64))
        levels.append(Level(symbol, arguments, tree))
        tree = np.repeat(tree, arguments)
    return levels


def measured(levels: Sequence[Level]) -> list[np.ndarray]:
    """The length of each node's expression, level by level."""
    sizes: list[np.ndarray] = []
    for level in reversed(levels):
        size = np.ones(len(level.symbol), np.int64)
        operator = level.arguments > 0
        if operator.any():
            size[operator] = 2 + np.add.reduceat(sizes[-1], firsts(level.arguments[operator]))
        sizes.append(size)
    return sizes[::-1]


def values(levels: Sequence[Level]) -> Int[np.ndarray, " n"]:
    """The value of each expression, from the innermost level outwards."""
    below = np.zeros(0, np.int64)
    for level in reversed(levels):
        here = level.symbol.copy()
        operator = level.arguments > 0
        if operator.any():
            count = level.arguments[operator]
            first = firsts(count)
            owner = np.repeat(np.arange(len(count)), count)
            ordered = np.sort(owner * 10 + below) % 10
            median = (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) // 2
            total = np.add.reduceat(below, first) % 10
            by_operator = np.stack([ordered[first], ordered[first + count - 1], median, total])
            here[operator] = by_operator[level.symbol[operator] - MIN, np.arange(len(count))]
        below = here
    return below


def serialised(
    levels: Sequence[Level], sizes: Sequence[np.ndarray], chosen: Bool[np.ndarray, " n"]
) -> tuple[Integer[np.ndarray, " m"], Int[np.ndarray, " s"]]:
    """The symbols of the chosen expressions one after the other, and where each ends."""
    stop = np.cumsum(sizes[0][chosen])
    symbols = np.full(int(stop[-1]) if len(stop) else 0, END, np.uint8)
    place = np.cumsum(np.where(chosen, sizes[0], 0)) - np.where(chosen, sizes[0], 0)
    for depth, level in enumerate(levels):
        selected = chosen[level.tree]
        symbols[place[selected]] = level.symbol[selected]
        if depth + 1 < len(levels):
            count = level.arguments[level.arguments > 0]
            size = sizes[depth + 1]
            ahead = np.cumsum(size) - size  # within all children, then within those of one parent
            ahead -= np.repeat(ahead[firsts(count)] if len(count) else count, count)
            place = np.repeat(place, level.arguments) + 1 + ahead
    return symbols, stop


def firsts(count: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Where groups of these sizes begin, one after the other."""
    return np.cumsum(count) - count


def value(symbols: Sequence[int]) -> int:
    """The oracle: the value of one expression, read from left to right."""
    open_lists: list[list[int]] = [[]]
    for symbol in symbols:
        if symbol == END:
            operator, *arguments = open_lists.pop()
            open_lists[-1].append(apply(operator, sorted(arguments)))
        elif symbol >= MIN:
            open_lists.append([symbol])
        else:
            open_lists[-1].append(symbol)
    ((answer,),) = open_lists
    return answer


def apply(operator: int, ordered: list[int]) -> int:
    middle = len(ordered) // 2
    match operator:
        case 10:
            return ordered[0]
        case 11:
            return ordered[-1]
        case 12:
            return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
        case _:
            return sum(ordered) % 10


def by_operator_and_length(part: Sequences) -> Mapping[str, Kinds]:
    """By the outermost operator, all that the first symbol says, and by length; a digit alone has none."""
    first = part.symbols[part.start].astype(np.int64)
    names = (*(symbol.strip("[") for symbol in SYMBOLS[MIN:END]), "a digit")
    return {"root operator": Kinds(names, np.where(first < MIN, END, first) - MIN), **by_length(part)}


def first_symbol(train: Sequences, test: Sequences) -> Float[np.ndarray, "n 10"]:
    """For each test expression, how often each value had its first symbol in training."""
    counts = np.zeros((len(SYMBOLS), 10))
    np.add.at(counts, (train.symbols[train.start], train.answer), 1)
    return counts[test.symbols[test.start]]
