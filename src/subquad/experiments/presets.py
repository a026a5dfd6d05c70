"""Skeletons that published comparisons used, by the name that `--preset` takes.

The Long Range Arena's own are those of its released configurations (github.com/google-research/
long-range-arena), which differ from the appendix of Tay et al. (2020). "lra-ports" is what its PyTorch ports
share: those of Nyströmformer, Skyformer and xFormers. Pathfinder's is missing, since its queries are half as
wide as its model.

A preset sets what this trainer has. Not reproduced are their schedules (inverse square root behind a warm-up
of 1,000 or 8,000 steps; one cycle), Adam's constants, pooling by a first token (here by the mean of the real
ones, where the ports take padding, too) and the hidden layer of their classifiers. The budget is no part of
it: give `--steps`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from subquad.config import ModelConfig
from subquad.plugins import look_up


@dataclass(frozen=True, kw_only=True)
class Preset:
    """`training`: of the options of a training those that are set."""

    model: ModelConfig
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """All that is set, by the name of the option."""
        return {**asdict(self.model), **self.training}


PRESETS: Mapping[str, Preset] = {
    "lra-listops": Preset(
        model=ModelConfig(dim=512, depth=4, heads=8, mlp_ratio=2.0, positions="sinusoidal", dropout=0.1),
        training={"batch": 32, "learning_rate": 1.58e-3, "weight_decay": 0.1},  # 0.05 / sqrt(1,000 steps)
    ),
    "lra-text": Preset(
        model=ModelConfig(dim=256, depth=4, heads=4, mlp_ratio=4.0, positions="sinusoidal", dropout=0.1),
        training={"batch": 32, "learning_rate": 5.6e-4, "weight_decay": 0.1},  # 0.05 / sqrt(8,000 steps)
    ),
    "lra-matching": Preset(
        model=ModelConfig(dim=128, depth=4, heads=4, mlp_ratio=4.0, positions="sinusoidal", dropout=0.1),
        training={
            "batch": 32,
            "learning_rate": 5.6e-4,
            "weight_decay": 0.1,
        },  # theirs ends within its warm-up
    ),
    "lra-image": Preset(
        model=ModelConfig(dim=32, depth=1, heads=1, mlp_ratio=2.0, positions="learnt", dropout=0.3),
        training={"batch": 256, "learning_rate": 5e-4, "weight_decay": 0.0},
    ),
    "lra-ports": Preset(
        model=ModelConfig(dim=64, depth=2, heads=2, mlp_ratio=2.0, positions="learnt", dropout=0.1),
        training={"learning_rate": 1e-4, "weight_decay": 0.0},
    ),
}


def preset(name: str) -> Preset:
    """Raises `ValueError` for a name that is none."""
    return look_up("preset", name, PRESETS)


def preset_of(model: ModelConfig) -> str | None:
    """The name of the preset whose skeleton this is, in full."""
    return next((name for name, each in PRESETS.items() if each.model == model), None)
