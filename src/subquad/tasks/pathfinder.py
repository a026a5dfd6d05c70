"""Pathfinder: does one dashed curve join the two discs, or does each lie on a curve of its own?

Linsley et al. (2018, arXiv:1805.08315), as the Long Range Arena asks it (Tay et al. 2020): the pixels of a
picture, row by row, are the sequence. Its Pathfinder has 32 pixels a side, and Path-X 128, with curves of 14
dashes. Brightness 0 is a colour and no padding. `subquad.tasks.curves` draws the pictures.

A run either finds out what is asked or stays at chance, 50 %: say of several seeds how many do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from subquad.fields import Split, Tokens
from subquad.objectives import Classification
from subquad.task import TaskTraits
from subquad.tasks.curves import Style, pictures
from subquad.tasks.errors import DataError
from subquad.tasks.generated import Generated
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData, Sequences

PIXELS = 2**20  # pixels that are drawn at a time
STYLES: Mapping[int, dict[str, Any]] = {
    32: {"length": 2, "thickness": 0.5, "apart": 7, "radius": 1.5, "continuity": 1.0, "distractors": 5}
    | {"target_ink": 1.5, "distractor_ink": 2.0},
    64: {"length": 5, "thickness": 1.0, "apart": 12, "radius": 2.5, "continuity": 1.8, "distractors": 4}
    | {"target_ink": 0.8, "distractor_ink": 0.8},
    128: {"length": 5, "thickness": 1.5, "apart": 20, "radius": 3.0, "continuity": 1.8, "distractors": 7}
    | {"target_ink": 0.9, "distractor_ink": 0.9},
    256: {"length": 5, "thickness": 2.0, "apart": 27, "radius": 5.0, "continuity": 1.8, "distractors": 6}
    | {"target_ink": 1.0, "distractor_ink": 1.0},
}
MARGINS = {32: (1,), 64: (1,), 128: (2, 3), 256: (3,)}  # one of them for all pictures that are drawn together
BORDERS = {32: 1, 64: 1, 128: 1, 256: 22}


class Pathfinder(Generated):
    """See the module.

    `train`, `validation`, `test`: pictures of each split.
    `side`: pixels of a side: 32, 64, 128 (Path-X) or 256.
    `contour`: dashes of the two long curves: 14 as in the Arena, 9 or 6 are easier.
    `seed`: of the generator.
    """

    traits = TaskTraits(
        name="pathfinder",
        description="does a dashed curve join the two discs? (Long Range Arena; 128 pixels a side: Path-X)",
        targets=("joined",),
        unit="pixel",
        length=65_536,
        source="https://arxiv.org/abs/1805.08315, made by subquad",
        sizes={
            "quick": {"train": 4_000, "validation": 400, "test": 1_000, "contour": 6},
            "small": {"train": 20_000, "validation": 1_000, "test": 2_000, "contour": 6},
            "full": {},
        },
    )

    def __init__(
        self,
        *,
        train: int = 160_000,
        validation: int = 20_000,
        test: int = 20_000,
        side: int = 32,
        contour: int = 14,
        seed: int = 0,
    ) -> None:
        self.sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test}
        if min(self.sizes.values()) < 1 or seed < 0:
            raise DataError(
                "pathfinder: train, validation and test must be at least 1 and seed at least 0, not "
                f"{(*self.sizes.values(), seed)}"
            )
        if side not in STYLES:
            raise DataError(f"pathfinder: side must be one of {', '.join(map(str, STYLES))}, not {side}")
        if contour < 3:
            raise DataError(f"pathfinder: contour must be at least 3, not {contour}")
        self.side, self.contour, self.seed = side, contour, seed

    def data(self, splits: dict[Split, Sequences]) -> SequenceData:
        return SequenceData(
            splits=splits,
            fields=Tokens(vocabulary=256),
            target="joined",
            objective=Classification(classes=("apart", "joined")),
            readers={"bag of pixels": bag_of_pixels},
            about={
                "task": self.traits.name,
                "question": "does one curve join the two discs?",
                "side": self.side,
                "contour": self.contour,
                "seed": self.seed,
            },
        )

    def block(self, bits: RandomBits, missing: int) -> Sequences:
        """Pictures, and of each whether the discs are joined."""
        size = self.side**2
        margin = MARGINS[self.side][bits.below(len(MARGINS[self.side]), 1)[0]]
        joined = bits.below(2, min(missing, max(1, PIXELS // size)))
        drawn = pictures(self.style(margin), bits, joined == 1)
        return Sequences(drawn.ravel(), np.arange(1, len(joined) + 1) * size, joined)

    def too_few(self, found: int, count: int) -> str:
        return f"pathfinder: only {found:,} different pictures of {count:,} found: ask for fewer"

    def style(self, margin: int) -> Style:
        return Style(
            side=self.side,
            border=BORDERS[self.side],
            margin=margin,
            dashes=self.contour,
            distractor_dashes=max(2, self.contour // 3),
            **STYLES[self.side],
        )


def bag_of_pixels(train: Sequences, test: Sequences) -> np.ndarray:
    """A logistic regression on how often each brightness occurs, which should know nothing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(counts(train), train.answer)
    return model.decision_function(counts(test))


def counts(part: Sequences) -> np.ndarray:
    """How often each brightness occurs in each picture."""
    pixels = part.symbols.reshape(len(part), -1)
    return np.stack([np.bincount(row, minlength=256) for row in pixels])
