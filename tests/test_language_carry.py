"""All that streams trains with `carry`, in every precision, and reads documents as if they were whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments_sample import QUICK, changed
from mechanism_names import STREAMING

from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.spec import Fit
from subquad.experiments.training import Training
from subquad.fields import Split
from subquad.nn.layers.named import layer_catalog
from subquad.registry import catalog
from subquad.tasks.documents import Documents
from subquad.tasks.language import LanguageData

WINDOW, WHOLE = 8, 32
LENGTHS: dict[Split, tuple[int, ...]] = {  # in bytes
    "train": (31, 5, 12, 3),
    "validation": (11,),
    "test": (30, 9, 17, 1, 5),
}
NAMED = {"task": "language", "target": "next", "options": {}, "fingerprint": "", "length": WINDOW}
ROUNDING = {"32-true": 1e-6, "64-true": 1e-12, "bf16-mixed": 1e-5, "bf16-true": 1e-5}  # of bits per byte

MECHANISMS = {name: dict(catalog()[name].traits.tiny) for name in STREAMING if name != "cosformer"}
LAYERS = {name: dict(cls.traits.checked[0]) for name, cls in layer_catalog().items() if cls.traits.state}
MIXED: dict[str, dict[str, Any]] = {
    "local:width=3&gated-delta+moba:block=4,top=3": {},
    "conformer:inside=kda,kernel=3+transformer-xl:segment=5,memory=7": {},
}
STREAMED = {**MECHANISMS, **LAYERS, **MIXED}
FEW = {"softmax", "nsa", "gated-delta", "compressive", "local:width=3&gated-delta+moba:block=4,top=3"}


def language(length: int) -> LanguageData:
    """Made texts, in windows of so many bytes."""
    chance = np.random.default_rng(0)
    splits: dict[Split, Documents] = {
        split: Documents.of([chance.integers(97, 105, n, dtype=np.uint8).tobytes() for n in lengths])
        for split, lengths in LENGTHS.items()
    }
    return LanguageData(splits=splits, target="next", length=length, about={})


def asked(name: str, precision: str) -> Fit:
    return changed(
        QUICK,
        data=NAMED,
        mechanism={"attention": name, "causal": True, "options": STREAMED[name]},
        model={"depth": 1 + name.count("+")},
        training={"steps": 5, "batch": 3, "carry": 1, "precision": precision},
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if name in FEW or precision == "32-true" else pytest.mark.slow)
        for name in STREAMED
        for precision in ROUNDING
    ],
)
def test_documents_read_window_by_window_take_as_many_bits_as_whole_ones(
    name: str, precision: str, tmp_path: Path
):
    spec, place = asked(name, precision), tmp_path / "none"
    carried = Training(spec, language(WINDOW), checkpoint_path=place, tell=lambda *_: None)
    carried.run()
    spec = changed(spec, data={"length": WHOLE}, training={"carry": 0})
    whole = Training(spec, language(WHOLE), checkpoint_path=place, tell=lambda *_: None)
    whole.model.load_state_dict(carried.model.state_dict())
    bits, expected = (x.evaluate("test").scores["bits_per_byte"] for x in (carried, whole))
    assert bits == pytest.approx(expected, rel=ROUNDING[precision])


def test_a_precision_in_which_no_cpu_trains_is_refused_before_the_first_run(tmp_path: Path):
    message = (
        "precision '16-mixed' is for GPUs, and on the device 'cpu' nothing trains in it: take 'bf16-mixed'"
    )
    with pytest.raises(ValueError, match=message):
        plan(Comparison(training=TrainingConfig(precision="16-mixed", carry=1), device="cpu"))
    spec = asked("softmax", "16-mixed")
    with pytest.raises(ValueError, match=message):
        Training(spec, language(WINDOW), checkpoint_path=tmp_path / "none", tell=lambda *_: None)
