"""A course of recovery: what each stage is worth, and that an interruption changes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import SAMPLES, run
from torch import Tensor
from torch.testing import assert_close

import subquad.integrations.huggingface as hf
from subquad.config import RecoveryConfig
from subquad.integrations.huggingface import recovery

SHORT = RecoveryConfig(transfer=6, distil=6)


class Pairs:
    """The batch of a step, by its number."""

    def __init__(self, kind: str = "bert", fail_at: int | None = None) -> None:
        self.kind, self.fail_at, self.read = kind, fail_at, 0

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        self.read += 1
        if self.read == self.fail_at:
            raise KeyboardInterrupt
        torch.manual_seed(100 + number)
        return SAMPLES[self.kind].inputs()


def converted(kind: str, attention: str, **options: Any) -> Any:
    return hf.convert(SAMPLES[kind].model(), attention, **options)


def held_out(kind: str) -> list[Any]:
    return [Pairs(kind)[50 + number] for number in range(3)]


@pytest.mark.parametrize(
    ("kind", "attention", "stages"),
    [
        ("bert", "hedgehog", ["original", "converted", "transfer", "distilled"]),
        ("llama", "linear", ["original", "converted", "distilled"]),
        ("bart", "linear", ["original", "converted", "distilled"]),
    ],
)
def test_every_stage_is_measured_and_nearer_to_what_the_model_was(
    kind: str, attention: str, stages: list[str]
):
    model = converted(kind, attention)
    found = hf.recover(
        model, Pairs(kind), held_out(kind), config=RecoveryConfig(transfer=20, distil=30, distil_rate=3e-3)
    )
    assert [stage.name for stage in found] == stages
    assert [len(stage.loss) for stage in found] == [stage.steps for stage in found]
    measure = "cosine" if kind == "bert" else "divergence"
    first, last = (found[place].quality[measure] for place in (1, -1))
    assert (last > first) if measure == "cosine" else (last < first)
    original = found[0].quality
    exact = {"cosine": 1, "rank_correlation": 1, "divergence": 0, "agreement": 1}
    assert original == pytest.approx({name: exact[name] for name in original}, abs=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("fail_at", [1, 4, 7, 8, 11, 14])
def test_a_course_that_was_killed_ends_as_it_would_have(
    fail_at: int, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recovery, "CHECKPOINT_S", 0.0)
    config = RecoveryConfig(transfer=6, distil=6, rank=rank, distil_rate=1e-3)
    undisturbed = converted("bert", "hedgehog")
    expected = hf.recover(undisturbed, Pairs(), held_out("bert"), config=config)
    path = tmp_path / "recovery.safetensors"
    with pytest.raises(KeyboardInterrupt):
        hf.recover(
            converted("bert", "hedgehog"), Pairs(fail_at=fail_at), held_out("bert"), config=config, path=path
        )
    model = converted("bert", "hedgehog")
    found = hf.recover(model, Pairs(), held_out("bert"), config=config, path=path)
    assert [stage.quality for stage in found] == [stage.quality for stage in expected]
    assert [stage.loss for stage in found] == [stage.loss for stage in expected]
    for name, weight in undisturbed.state_dict().items():
        assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    again = converted("bert", "hedgehog")
    assert hf.recover(again, Pairs(), held_out("bert"), config=config, path=path) == found
    assert again.state_dict().keys() == model.state_dict().keys()
    inputs = SAMPLES["bert"].inputs()
    assert_close(run(again, inputs), run(model, inputs))


def test_the_checkpoint_of_another_course_is_refused_and_stays(tmp_path: Path):
    path = tmp_path / "recovery.safetensors"
    hf.recover(converted("bert", "hedgehog"), Pairs(), held_out("bert"), config=SHORT, path=path)
    written = path.read_bytes()
    others: list[tuple[Any, Any, RecoveryConfig]] = [
        (converted("bert", "hedgehog"), Pairs(), RecoveryConfig(transfer=6, distil=7)),
        (converted("bert", "linear"), Pairs(), SHORT),
    ]
    for model, training, config in others:
        with pytest.raises(ValueError, match="is of a recovery of another model, texts or steps: remove it"):
            hf.recover(model, training, held_out("bert"), config=config, path=path)
    path.write_bytes(written[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        hf.recover(converted("bert", "hedgehog"), Pairs(), held_out("bert"), config=SHORT, path=path)


def test_a_loss_that_is_no_number_ends_the_course():
    model = converted("bert", "hedgehog")
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.fill_(torch.inf)
    with pytest.raises(
        ValueError, match=r"the loss of step 1 of transfer is nan: take a lower learning rate"
    ):
        hf.recover(model, Pairs(), held_out("bert"), config=SHORT)


def test_what_was_not_converted_is_refused():
    with pytest.raises(ValueError, match="was not converted"):
        hf.recover(SAMPLES["bert"].model(), Pairs(), held_out("bert"), config=SHORT)
