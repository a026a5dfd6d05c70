"""Pictures are read pixel by pixel, in grey as it is defined, from a file or from the hub."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image as pillow
from published import jpeg, pictures, shared, stored, use_hub

from subquad import tasks
from subquad.fields import Tokens
from subquad.tasks import DataError
from subquad.tasks.image import CIFAR, GreyPixels, Image, decoded, grey
from subquad.tasks.published import in_order
from subquad.tasks.sequences import SequenceData
from subquad.testing.task import Case, contract

FINGERPRINT = "adb2b1dc2840a7e8aa5cf8b5eaa35137ae1d1e9910dce860d4d89f484d9cd06e"
TRAIN, TEST = pictures(300, 0), pictures(100, 1)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one below SUBQUAD_DATA."""
    store(tmp_path)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    return tmp_path


def store(folder: Path, **changed: list[Any]) -> None:
    train = {"jpeg": [jpeg(picture) for picture in TRAIN["img"]], "label": TRAIN["label"], **changed}
    test = {"jpeg": [jpeg(picture) for picture in TEST["img"]], "label": TEST["label"]}
    stored(folder, CIFAR.file, "jpeg", train=train, test=test)


def load(**options: Any) -> SequenceData:
    data = tasks.load("image", **options)
    assert isinstance(data, SequenceData)
    return data


@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, cifar: Path):
    check(Case(Image(), "class"))


def test_grey_is_the_rounded_sum_of_the_standard():
    colours = np.array(
        [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 4], [0, 0, 5]], np.uint8
    )
    assert grey(colours).tolist() == [255, 76, 150, 29, 0, 1]
    every = np.random.default_rng(0).integers(0, 256, (1000, 3)).astype(np.uint8)
    by_pillow = np.array(pillow.fromarray(every[None]).convert("L"))[0]  # in fixed point of 16 bits
    assert np.abs(grey(every).astype(int) - by_pillow).max() <= 1
    assert (grey(every) == by_pillow).mean() > 0.99


def test_the_hub_s_pixels_are_read_as_they_are_row_by_row(monkeypatch: pytest.MonkeyPatch):
    use_hub(monkeypatch, cifar10={"train": TRAIN, "test": TEST})
    data = load()
    colours = np.stack([np.array(picture) for picture in TEST["img"]])
    order = in_order([row.tobytes() for row in grey(colours)])
    assert np.array_equal(data.splits["test"].symbols.reshape(100, 32, 32), grey(colours)[order])
    assert data.truth("test").tolist() == [TEST["label"][place] for place in order]
    assert data.summary["data"] == "CIFAR-10, uoft-cs/cifar10"
    assert data.fields == Tokens(vocabulary=256)


def test_black_is_a_colour_and_no_padding(monkeypatch: pytest.MonkeyPatch):
    black = {"img": [*TEST["img"], pillow.new("RGB", (32, 32))], "label": [*TEST["label"], 3]}
    use_hub(monkeypatch, cifar10={"train": TRAIN, "test": black})
    batches = load().batches("test", size=101, length=1024, seed=0, epoch=0, shuffle=False)
    (batch,) = batches
    assert (batch.inputs[0] == 0).all(1).sum() == 1
    assert batch.valid.all()


def test_jpeg_is_said_to_be_jpeg(cifar: Path):
    data = load()
    assert data.summary["data"] == "CIFAR-10, JPEG q75"
    assert len(data.truth("validation")) == 30
    assert len(data.truth("train")) == 270


def test_new_pictures_are_read_as_those_of_training(cifar: Path):
    data = load()
    assert isinstance(data.encoding, GreyPixels)
    colours = np.stack([np.array(picture) for picture in TEST["img"]])
    _, (ids,), valid = data.encoding.batch(colours, 1024)
    _, (again,), _ = data.encoding.batch(grey(colours), 1024)
    assert np.array_equal(ids.numpy(), decoded(TEST["img"]))
    assert ids.equal(again)
    assert valid.all()


def test_a_logistic_regression_tells_something(cifar: Path):
    data = load()
    output = data.baseline("pixels", length=1024, seed=0)
    assert (data.objective.choose(output) == data.truth("test")).mean() > 0.2


def test_it_is_said_how_to_get_what_is_missing(cifar: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    missing = {"datasets"}
    for module in ("image", "published"):
        monkeypatch.setattr(
            f"subquad.tasks.{module}.find_spec", lambda name: None if name in missing else find(name)
        )
    (cifar / CIFAR.file).unlink()
    install = r'pip install "subquad\[published\]"'
    with pytest.raises(DataError, match=rf"has no {CIFAR.file}, and the package datasets, .*{install}"):
        load()
    missing.add("PIL")
    with pytest.raises(DataError, match=f"by Pillow, which is not installed: {install}"):
        load()


def test_what_is_no_picture_of_the_kind_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number, (picture, message) in enumerate(
        [
            (b"no picture", "image: picture 0 cannot be read: cannot identify"),
            (jpeg(pillow.new("RGB", (31, 32))), r"image: picture 0 has \(31, 32\) pixels, not \(32, 32\)"),
        ]
    ):
        folder = tmp_path / str(number)
        store(folder, jpeg=[picture], label=[0])
        monkeypatch.setenv("SUBQUAD_DATA", str(folder))
        with pytest.raises(DataError, match=message):
            load()
    with pytest.raises(DataError, match=r"image: train, validation and test must be .*, not \(45000, 0, 1"):
        Image(validation=0)
    with pytest.raises(DataError, match=r"as uint8 of shape .*, not float64 of shape \(2, 32, 32\)"):
        GreyPixels().batch(np.zeros((2, 32, 32)), 1024)
    with pytest.raises(DataError, match="pictures have no moment"):
        GreyPixels().batch(np.zeros((2, 32, 32), np.uint8), 1024, until=1)


def test_a_part_of_a_picture_is_no_example(cifar: Path):
    with pytest.raises(DataError, match="sequences have up to 1,024 tokens"):
        load(length=1000)


def test_pictures_of_cifar_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the first of each split, since all take long to decode."""
    table = pl.scan_parquet(shared(CIFAR.file))
    train, test = (
        table.filter(pl.col("split") == split).head(400).collect().to_dict(as_series=False)
        for split in ("train", "test")
    )
    stored(tmp_path, CIFAR.file, "jpeg", train=train, test=test)
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path))
    assert load(test=50).fingerprint == FINGERPRINT
