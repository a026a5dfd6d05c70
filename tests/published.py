"""Small data sets in the place of published ones, below SUBQUAD_DATA and as from the hub."""

import os
import sys
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image as pillow

Table = dict[str, list[Any]]
WORDS = {0: ("dull", "poor", "film", "plot"), 1: ("great", "fine", "film", "plot")}


def reviews(count: int, seed: int) -> Table:
    """Mostly told by their words."""
    chance = np.random.default_rng(seed)
    label = chance.integers(0, 2, count)
    told = np.where(chance.random(count) < 0.2, 1 - label, label)
    text = [" ".join(chance.choice(WORDS[kind], chance.integers(3, 30))) + f" né {seed}" for kind in told]
    return {"text": [f"{words}{place}" for place, words in enumerate(text)], "label": label.tolist()}


def pictures(count: int, seed: int) -> Table:
    """Brighter by class, with noise."""
    chance = np.random.default_rng(seed)
    label = np.arange(count) % 10
    noise = chance.integers(0, 120, (count, 32, 32, 3))
    pixels = (noise + 12 * label[:, None, None, None]).astype(np.uint8)
    return {"img": [pillow.fromarray(picture) for picture in pixels], "label": label.tolist()}


def stored(folder: Path, file: str, column: str, *, train: Table, test: Table) -> None:
    """A table as `subquad.tasks.published` finds it below SUBQUAD_DATA."""
    rows = {
        "split": ["train"] * len(train["label"]) + ["test"] * len(test["label"]),
        "label": train["label"] + test["label"],
        column: train[column] + test[column],
    }
    (folder / file).parent.mkdir(parents=True)
    pl.DataFrame(rows, schema_overrides={"label": pl.Int8, "split": pl.Categorical}).write_parquet(
        folder / file
    )


def jpeg(picture: pillow.Image) -> bytes:
    target = BytesIO()
    picture.save(target, "JPEG")
    return target.getvalue()


def use_hub(patch: pytest.MonkeyPatch, **held: dict[str, Table]) -> None:
    """A stand-in for the package datasets, whose hub holds these and loses the connection for others."""

    def load_dataset(name: str) -> dict[str, Table]:
        if name.split("/")[1] not in held:
            raise ConnectionError("no route")
        return held[name.split("/")[1]]

    module = ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)
    module.load_dataset = load_dataset  # pyright: ignore[reportAttributeAccessIssue]
    patch.setitem(sys.modules, "datasets", module)
    patch.delenv("SUBQUAD_DATA", raising=False)


def shared(file: str) -> Path:
    """The real one, or a reason to skip."""
    path = Path(os.environ.get("SUBQUAD_DATA", "")) / file
    if not path.is_file():
        pytest.skip(f"SUBQUAD_DATA names no folder with {file}")
    return path
