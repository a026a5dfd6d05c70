"""ListOps: the distribution is the published one, and two ways to work out a value agree."""

from typing import Any

import numpy as np
import pytest
import torch

from subquad import tasks
from subquad.tasks import DataError
from subquad.tasks.listops import END, MAX, MED, MIN, SM, SYMBOLS, Expressions, ListOps, value
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData

FINGERPRINT = "71bfdb2a14355b4096cfbbbc084f41e5d69761b5e046778988b3447904e20872"
SMALL: dict[str, Any] = {"train": 300, "validation": 40, "test": 40, "above": 5, "below": 60, "depth": 4}


@pytest.fixture(scope="module")
def drawn():
    """As many expressions as some blocks of the published distribution hold."""
    bits = RandomBits(0)
    return [ListOps().block(bits, 96_000) for _ in range(2)]


def test_the_generator_and_the_oracle_agree(drawn):
    for block in drawn:
        for start, stop, answer in zip(block.start, block.stop, block.answer, strict=True):
            assert value(block.symbols[start:stop].tolist()) == answer


def test_an_expression_is_an_operator_with_two_to_ten_arguments_of_the_right_length(drawn):
    for block in drawn:
        assert ((block.lengths > 500) & (block.lengths < 2000)).all()
        for start, stop in zip(block.start, block.stop, strict=True):
            symbols = block.symbols[start:stop].tolist()
            counts = []
            for symbol in symbols:
                if symbol == END:
                    assert 2 <= counts.pop() <= 10
                if symbol >= MIN and symbol != END:
                    counts.append(0)
                elif counts:
                    counts[-1] += 1
            assert not counts


def test_the_distribution_is_the_published_one(drawn):
    """As measured on 20,000 expressions of another implementation; within four standard errors."""
    lengths = np.concatenate([block.lengths for block in drawn])
    answers = np.concatenate([block.answer for block in drawn])
    count = len(lengths)
    assert count / (2 * 4096) == pytest.approx(0.082, abs=4 * (0.082 * 0.918 / 8192) ** 0.5)
    assert lengths.mean() == pytest.approx(1035, abs=4 * 400 / count**0.5)
    for digit in (0, 9):
        assert (answers == digit).mean() == pytest.approx(0.169, abs=4 * (0.169 * 0.831 / count) ** 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", 4),
        ("( ( ( [MAX 4 ) 3 ) ] )", 4),  # as the published files are written
        ("[MED 1 2 ]", 1),
        ("[MED 5 1 9 ]", 5),
        ("[SM 9 9 9 ]", 7),
        ("7", 7),
    ],
)
def test_a_text_is_read_and_has_the_value_that_it_says(text, expected):
    assert value(Expressions().read(text)) == expected


def test_another_symbol_is_refused():
    with pytest.raises(DataError, match=r"unknown symbol '\[MEAN'; there are 0, 1,"):
        Expressions().read("[MEAN 1 2 ]")


def test_the_same_options_make_the_same_data_on_every_machine():
    data = tasks.load("listops", **SMALL)
    assert data.fingerprint == FINGERPRINT
    assert tasks.load("listops", **SMALL, seed=1).fingerprint != FINGERPRINT


def test_no_expression_is_cut_and_none_comes_twice():
    with pytest.raises(DataError, match="none can be answered in part: give a length"):
        tasks.load("listops", **SMALL, length=40)
    data = tasks.load("listops", **SMALL)
    assert isinstance(data, SequenceData)
    every = [
        tuple(part.symbols[start:stop].tolist())
        for part in data.splits.values()
        for start, stop in zip(part.start, part.stop, strict=True)
    ]
    assert len(set(every)) == len(every) == 380


def test_more_expressions_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"only 10 expressions of 380 found that are 1 deep"):
        tasks.load("listops", **{**SMALL, "depth": 1, "above": 0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 0}, "train, validation and test must be at least 1, not (0, 2000, 2000)"),
        ({"above": 9, "below": 10}, "no length lies between 9 and 10"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"dept": 3}, "the task 'listops' has no option 'dept'; did you mean 'depth'?"),
    ],
)
def test_what_cannot_be_made_is_refused(options, said):
    with pytest.raises(DataError) as refusal:
        tasks.load("listops", **options)
    assert str(refusal.value).startswith(said)


def test_the_first_symbol_tells_more_than_the_majority():
    data = ListOps(**{**SMALL, "train": 3000, "test": 1000}).load()
    reached = []
    for name in ("majority", "first symbol"):
        chosen = data.objective.choose(data.baseline(name, length=60, seed=0))
        reached.append(data.objective.judge(data.truth("test"), chosen)[0])
    assert reached[0] + 0.05 < reached[1] < 1


def test_new_expressions_are_read_as_training_read_them():
    names, (ids,), valid = Expressions().batch(["[SM 1 2 ]", "7"], 10)
    assert names.to_list() == ["[SM 1 2 ]", "7"]
    assert ids[0].tolist() == [SM, 1, 2, END]
    assert torch.equal(valid, torch.tensor([[True] * 4, [True, False, False, False]]))
    assert (SYMBOLS[MAX], SYMBOLS[MED]) == ("[MAX", "[MED")
    with pytest.raises(DataError, match="give expressions of 1 to 3 symbols, not 4"):
        Expressions().batch(["[SM 1 2 ]"], 3)
