"""A trained classifier goes to a folder and comes back the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE
from torch.testing import assert_close

from subquad.fields import Events, Pair, Readout, Tokens
from subquad.nn.encoder import EncoderConfig
from subquad.nn.export import read, save
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.registry import catalog

VALID = torch.tensor([[False, True, True, False, True], [True] * 5])
IDS = torch.tensor([[[0], [1], [2], [3], [0]], [[1], [1], [2], [3], [0]]])


def classifier(attention: str = "linear") -> SequenceModel:
    torch.manual_seed(0)
    cls = catalog()[attention]
    encoder = EncoderConfig(
        dim=8,
        depth=2,
        heads=2,
        attention=attention,
        options=dict(cls.traits.tiny),
        causal=not cls.traits.bidirectional,
        positions="learnt",
        max_len=5,
        dropout=0.1,
    )
    return SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=(4,), numeric=2), readout=Readout(outputs=3), encoder=encoder
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_model_comes_back_bit_for_bit(tmp_path, attention, dtype):
    model = classifier(attention).to(dtype)
    save(model, tmp_path / "a" / "model", extra={"classes": ["x", "y"], "seen": 3})
    again, extra = read(tmp_path / "a" / "model")
    assert extra == {"classes": ["x", "y"], "seen": 3}
    assert again.config == model.config
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    numbers = torch.randn(2, 5, 2, dtype=dtype)
    assert_close(again((IDS, numbers), VALID), model.eval()((IDS, numbers), VALID), rtol=0, atol=0)


@pytest.mark.parametrize("side", [Tokens(vocabulary=9), Events(vocabularies=(4,), numeric=1)])
def test_a_model_of_pairs_comes_back_bit_for_bit(tmp_path, side):
    model = SequenceModel(replace(classifier().config, fields=Pair(side=side))).eval()
    save(model, tmp_path, extra={})
    again, _ = read(tmp_path)
    assert again.config == model.config
    inputs = model.config.fields.sample(size=3, length=5, generator=torch.Generator())
    assert_close(again(inputs, None), model(inputs, None), rtol=0, atol=0)


def test_a_model_comes_back_ready_to_use_and_to_train(tmp_path):
    save(classifier().train(), tmp_path, extra={})
    again, _ = read(tmp_path)
    assert not any(module.training for module in again.modules())
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_the_folder_holds_two_files_and_no_drafts(tmp_path):
    save(classifier(), tmp_path, extra={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_the_model(tmp_path):
    save(classifier("linear"), tmp_path, extra={"turn": 1})
    save(classifier("softmax"), tmp_path, extra={"turn": 2})
    model, extra = read(tmp_path)
    assert extra == {"turn": 2}
    assert model.config.encoder.attention == "softmax"


def test_reading_draws_no_random_numbers(tmp_path):
    save(classifier(), tmp_path, extra={})
    before = torch.get_rng_state()
    read(tmp_path)
    assert_close(torch.get_rng_state(), before)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no exported model: No such file.*config.json"):
        read(tmp_path / "nowhere")


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_encoder(folder: Path, **changes) -> None:
    model = json.loads((folder / "config.json").read_text())["model"]
    edit(folder, model=model | {"encoder": model["encoder"] | changes})


def cut_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-10])


DAMAGE = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "cut weights": (cut_weights, "model.safetensors is not the file that config.json was written for"),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json' is damaged",
    ),
    "not an object": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "it holds no JSON object",
    ),
    "not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xff"), "utf"),
    "no format": (lambda folder: (folder / "config.json").write_text("{}"), "it has format None"),
    "later format": (lambda folder: edit(folder, format=3), "format 3, and this version of subquad reads 2"),
    "no model": (lambda folder: edit(folder, model={}), "missing"),
    "other model": (lambda folder: edit(folder, model={"depth": 1, "colour": 2}), "colour|missing"),
    "no depth": (
        lambda folder: edit_encoder(folder, depth="2"),
        "encoder.depth: input should be",
    ),
    "another depth": (lambda folder: edit_encoder(folder, depth=10**9), "and there are weights of 2 blocks"),
    "another option": (lambda folder: edit_encoder(folder, options={"colour": 2}), "no option 'colour'"),
    "no extra": (lambda folder: edit(folder, extra=None), "extra: input should be"),
    "a list": (lambda folder: edit(folder, model=[]), "should be an object"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_and_named(tmp_path, kind):
    damage, message = DAMAGE[kind]
    save(classifier(), tmp_path, extra={})
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        read(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_config_for_other_weights_is_refused(tmp_path):
    save(classifier(), tmp_path, extra={})
    model = json.loads((tmp_path / "config.json").read_text())["model"]
    edit(tmp_path, model=model | {"readout": {"outputs": 4}})
    with pytest.raises(ValueError, match=r"size mismatch for head.weight"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("attention", "changes"),
    [
        ("linear", {"dim": 2**40}),
        ("linear", {"heads": 2**40}),
        ("linear", {"max_len": 2**40}),
        ("linear", {"mlp_ratio": 1e300}),
        ("linformer", {"max_len": 2**40}),
        ("performer", {"options": {"features": 2**30}}),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused_before_they_are_made(
    tmp_path, attention, changes
):
    save(classifier(attention), tmp_path, extra={})
    edit_encoder(tmp_path, **changes)
    with pytest.raises(ValueError, match="holds no model that can be read"):
        read(tmp_path)


def test_a_mechanism_that_is_not_installed_is_named(tmp_path):
    save(classifier(), tmp_path, extra={})
    edit_encoder(tmp_path, attention="someone_elses")
    with pytest.raises(ValueError, match="unknown mechanism 'someone_elses'"):
        read(tmp_path)


def test_what_is_no_json_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(classifier(), tmp_path, extra={"loss": float("nan")})
    assert not list(tmp_path.iterdir())
