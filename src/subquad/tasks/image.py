"""Image: what a small picture shows, from its grey pixels row by row.

CIFAR-10 (Krizhevsky 2009), asked as in the Long Range Arena (Tay et al. 2020): 32 by 32 pixels are a
sequence of 1,024 brightnesses from 0 to 255, without augmentation. Brightness 0 is a colour and no padding.
Grey is that of ITU-R BT.601, 0.299 red + 0.587 green + 0.114 blue, rounded.

Of training a tenth is for validation (`subquad.tasks.published`): the Arena takes the last of its rows.

The pictures in `SUBQUAD_DATA` are JPEG of quality 75, and their pixels not exactly those of the authors:
say "CIFAR-10, JPEG q75" with scores of theirs. Those from the Hugging Face hub are exact. `summary` says
which they were.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from subquad.fields import SPLITS, Inputs, Tokens
from subquad.objectives import Classification
from subquad.task import InputEncoding, TaskTraits
from subquad.tasks.errors import DataError
from subquad.tasks.preparable import DataPart, Preparable, in_one_part, splits_of
from subquad.tasks.published import INSTALL, Published, chosen, require_sizes
from subquad.tasks.sequences import SequenceData, Sequences, require_length

SIDE = 32  # pixels
BRIGHTNESSES = 256
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ITERATIONS = 100  # of the logistic regression
CIFAR = Published(
    task="image",
    file="cifar10/cifar10_jpeg.parquet",
    column="jpeg",
    hub="uoft-cs/cifar10",
    hub_column="img",
    classes=len(CLASSES),
)


@dataclass(frozen=True, kw_only=True)
class GreyPixels(InputEncoding):
    """How pictures become brightnesses."""

    @property
    def fields(self) -> Tokens:
        return Tokens(vocabulary=BRIGHTNESSES)

    def batch(
        self, inputs: np.ndarray, length: int, *, until: Any = None
    ) -> tuple[pl.Series, Inputs, Bool[Tensor, "b t"]]:
        """Pictures as an array of uint8, in grey (b, 32, 32) or in colour (b, 32, 32, 3).

        Raises `DataError` for an array of another type or shape.
        """
        if until is not None:
            raise DataError("pictures have no moment: leave until= out")
        if inputs.dtype != np.uint8 or inputs.shape[1:] not in {(SIDE, SIDE), (SIDE, SIDE, 3)}:
            raise DataError(
                f"give pictures as uint8 of shape (number, {SIDE}, {SIDE}) or (number, {SIDE}, {SIDE}, 3), "
                f"not {inputs.dtype} of shape {inputs.shape}"
            )
        pixels = (inputs if inputs.ndim == 3 else grey(inputs)).reshape(len(inputs), -1)[:, :length]
        ids = torch.from_numpy(pixels.astype(np.int64))
        return pl.Series("picture", range(len(inputs))), (ids,), torch.ones(ids.shape, dtype=torch.bool)


class Image(Preparable):
    """See the module.

    `train`, `validation`, `test`: pictures of each split at most.
    """

    traits = TaskTraits(
        name="image",
        description="what a picture shows, from its grey pixels row by row (CIFAR-10; Long Range Arena)",
        targets=("class",),
        unit="pixel",
        length=SIDE**2,
        source="https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009); JPEG from SUBQUAD_DATA",
        sizes={
            "quick": {"train": 4_000, "validation": 400, "test": 1_000},
            "small": {"train": 20_000, "validation": 1_000, "test": 2_000},
            "full": {},
        },
    )
    encoding = GreyPixels

    def __init__(self, *, train: int = 45_000, validation: int = 5_000, test: int = 10_000) -> None:
        self.sizes = dict(zip(SPLITS, (train, validation, test), strict=True))
        require_sizes("image", self.sizes)

    def read_content(self) -> str:
        return CIFAR.content()

    def parts(self, before: Iterable[DataPart] = ()) -> Iterator[DataPart]:
        if find_spec("PIL") is None:
            raise DataError(f"the task 'image' reads pictures by Pillow, which is not installed: {INSTALL}")
        published = CIFAR.read()
        pixels = {"train": decoded(published.train.inputs), "test": decoded(published.test.inputs)}
        label = {"train": published.train.label, "test": published.test.label}
        choice = chosen(
            [row.tobytes() for row in pixels["train"]], [row.tobytes() for row in pixels["test"]], self.sizes
        )
        splits = {}
        for split in SPLITS:
            half, places = "test" if split == "test" else "train", choice.places[split]
            stop = np.arange(1, len(places) + 1) * SIDE**2
            splits[split] = Sequences(pixels[half][places].ravel(), stop, label[half][places])
        yield in_one_part(splits, {"local": published.local, "left out": dict(choice.left_out)})

    def dataset(self, made: DataPart, *, target: str | None, length: int | None) -> SequenceData:
        data = SequenceData(
            splits=splits_of(made),
            fields=Tokens(vocabulary=BRIGHTNESSES),
            target="class",
            objective=Classification(classes=CLASSES),
            readers={"pixels": logistic_regression},
            encoding=GreyPixels(),
            about={
                "task": self.traits.name,
                "question": "what does the picture show?",
                "data": "CIFAR-10, JPEG q75" if made.facts["local"] else f"CIFAR-10, {CIFAR.hub}",
                "training pictures left out": made.facts["left out"],
            },
        )
        require_length(data, length)
        return data


def decoded(pictures: Sequence[Any]) -> UInt8[np.ndarray, "n p"]:
    """The grey pixels of JPEG files, or of pictures as Pillow has them, row by row.

    Raises `DataError` where one is no picture or has another size.
    """
    from PIL import Image as pillow

    pixels = np.empty((len(pictures), SIDE, SIDE), np.uint8)
    for place, picture in enumerate(pictures):
        try:
            read = pillow.open(BytesIO(picture)) if isinstance(picture, bytes) else picture
            colours = np.asarray(read.convert("RGB"))
        except OSError as error:
            raise DataError(f"image: picture {place:,} cannot be read: {error}") from error
        if colours.shape[:2] != (SIDE, SIDE):
            raise DataError(f"image: picture {place:,} has {read.size} pixels, not {(SIDE, SIDE)}")
        pixels[place] = grey(colours)
    return pixels.reshape(len(pictures), -1)


def grey(colours: UInt8[np.ndarray, "*b 3"]) -> UInt8[np.ndarray, "*b"]:
    """ITU-R BT.601, rounded to whole numbers."""
    return ((colours @ np.array([299, 587, 114], np.int32) + 500) // 1000).astype(np.uint8)


def logistic_regression(train: Sequences, test: Sequences) -> np.ndarray:
    """Of the class on all pixels, after so many iterations, whether or not it has settled."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    def pixels(part: Sequences) -> np.ndarray:
        return part.symbols.reshape(len(part), -1) / 255 - 0.5

    model = LogisticRegression(max_iter=ITERATIONS)
    with threadpool_limits(1), catch_warnings():  # the same sums on any machine
        simplefilter("ignore", ConvergenceWarning)
        model.fit(pixels(train), train.answer)
    return model.decision_function(pixels(test))
