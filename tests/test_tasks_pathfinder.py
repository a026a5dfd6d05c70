"""Pathfinder: curves that keep clear of one another, discs that say what they should, and no leak."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad import tasks
from subquad.fields import Split
from subquad.metrics import score
from subquad.tasks import DataError
from subquad.tasks.curves import Block, Style, pictures
from subquad.tasks.pathfinder import Pathfinder
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData
from subquad.testing.task import Case, Check, contract

SMALL: dict[str, Any] = {"train": 200, "validation": 20, "test": 30, "contour": 6}
FINGERPRINT = "eed76f2986dd27106849b03b477a98dd6225ef44904f37b651881e5be7e318bb"


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Pathfinder(**SMALL), "joined")


@pytest.fixture(scope="module")
def style() -> Style:
    return Pathfinder().style(1)


@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_it_passes_the_contract(case: Case, check: Check):
    check(case)


def test_the_same_options_make_the_same_bytes_on_every_machine(case: Case):
    assert case.data.fingerprint == FINGERPRINT


def test_dashes_of_the_long_curves_keep_clear_of_one_another(style: Style):
    """But for those that follow one another no two of them have ink in one pixel."""
    block = Block(style, RandomBits(3), count=24)
    while (block.phase < 2).any():
        block.begin(np.flatnonzero(block.phase == 0))
        block.grow(np.flatnonzero(block.phase == 1))
    for picture in range(24):
        covered = np.zeros((2 * style.dashes, block.width**2), bool)
        for curve in range(2):
            for place in range(style.dashes):
                at = block.turn[picture, curve, place] + block.patch
                ink = style.stamps.ink[block.direction[picture, curve, place]]
                covered[curve * style.dashes + place, at] = ink > 0.4
        shared = covered.astype(int) @ covered.T.astype(int)
        first, second = np.nonzero(np.triu(shared, 2))
        assert all(place in {(0, style.dashes)} for place in zip(first, second, strict=True))


def test_a_curve_turns_little_and_goes_on_where_it_ended(style: Style):
    block = Block(style, RandomBits(3), count=24)
    while (block.phase < 2).any():
        block.begin(np.flatnonzero(block.phase == 0))
        block.grow(np.flatnonzero(block.phase == 1))
    stepped = block.turn[..., :-1] + block.advance[block.direction[..., :-1]]
    assert np.array_equal(block.turn[..., 1:], stepped)
    turned = style.turns[block.direction[..., :-1], block.direction[..., 1:]]
    assert (turned > 0).all()
    assert turned.mean() > 0.6


def test_the_discs_lie_where_the_answer_says(style: Style):
    """Of the same pictures, joined and apart: the start is one, the end is that of the other curve."""
    joined, apart = (pictures(style, RandomBits(5), np.full(12, answer)) for answer in (True, False))
    assert (joined != apart).any((1, 2)).all()
    differs = (joined != apart).reshape(12, -1).sum(1)
    assert (differs <= 2 * (2 * style.radius + 3) ** 2).all()


def test_answers_are_balanced_and_a_bag_of_pixels_knows_nothing():
    data = Pathfinder(train=1000, validation=10, test=500, contour=6).load()
    answers = data.truth("train")
    assert abs(answers.mean() - 0.5) < 4 * 0.5 / 1000**0.5
    output = data.baseline("bag of pixels", length=1024, seed=0)
    reached = score("accuracy", data.truth("test"), data.objective.choose(output))
    assert abs(reached - 0.5) < 4 * 0.5 / 500**0.5


def test_as_many_pixels_are_black_as_in_the_pictures_of_the_authors_code(style: Style):
    """53 to 75 % of a picture there, 66 % of all, by a run of it."""
    black = (pictures(style, RandomBits(0), np.zeros(32, bool)) == 0).mean((1, 2))
    assert 0.6 < black.mean() < 0.7
    assert black.min() > 0.5
    assert black.max() < 0.8


@pytest.mark.parametrize("side", [64, 128, 256])
def test_larger_pictures_are_drawn_too(side: int):
    style = Pathfinder(side=side, contour=6).style({64: 1, 128: 3, 256: 3}[side])
    drawn = pictures(style, RandomBits(0), np.ones(2, bool))
    assert drawn.shape == (2, side, side)
    assert drawn.max() == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 33}, "pathfinder: side must be one of 32, 64, 128, 256, not 33"),
        ({"contour": 2}, "pathfinder: contour must be at least 3, not 2"),
        ({"test": 0}, "train, validation and test must be at least 1 and seed at least 0, not"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        tasks.build("pathfinder", **{**SMALL, **options})


def test_curves_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subquad.tasks.curves.HOPELESS", 2)
    with pytest.raises(DataError, match="no place found for two curves of 60 dashes in a picture of 32 by"):
        Pathfinder(train=2, validation=1, test=1, contour=60).load()


def pictures_of(data: SequenceData, split: Split) -> tuple[Tensor, Tensor]:
    part = data.splits[split]
    pictures = part.symbols.reshape(len(part), 1, 32, 32).astype(np.float32) / 255
    return torch.from_numpy(pictures), torch.from_numpy(part.answer)


@pytest.mark.slow
def test_a_small_convolutional_network_finds_out_what_is_asked():
    """Of short curves, in seconds; long ones take it longer."""
    data = Pathfinder(train=2500, validation=10, test=400, contour=3).load()
    torch.manual_seed(0)
    width, steps, size = 16, 130, 48
    model = nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(5)
        ),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 2),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, answers = pictures_of(data, "train")
    for step in range(steps):
        first = step * size % len(inputs)
        some = slice(first, first + size)
        loss = F.cross_entropy(model(inputs[some]), answers[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inputs, answers = pictures_of(data, "test")
    with torch.no_grad():
        reached = (model.eval()(inputs).argmax(1) == answers).float().mean().item()
    assert reached > 0.5 + 4 * 0.5 / len(answers) ** 0.5
