"""How far mechanisms are from the softmax attention of a pretrained model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pretrained import SAMPLES, Sample, run
from test_huggingface import every_sample
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

import subquad.integrations.huggingface as hf

Command = Callable[..., tuple[int, str, str]]

RUNNABLE = {name: sample for name, sample in SAMPLES.items() if sample.only == "*"}


@every_sample
def test_a_restored_model_is_as_before(sample: Sample):
    model, inputs = sample.model(), sample.inputs()
    before, config = run(model, inputs), model.config.to_dict()
    hf.convert(model, "performer", only=sample.only, features=8)
    hf.restore(model)
    assert_close(run(model, inputs), before, rtol=0, atol=0)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert not any("subquad" in name for name in model.state_dict())
    assert not any(hasattr(module, "subquad") for module in model.modules())


@pytest.mark.parametrize("sample", RUNNABLE.values(), ids=RUNNABLE)
def test_softmax_is_no_way_from_itself_and_the_model_stays_as_it_was(sample: Sample):
    model, inputs = sample.model().train(), sample.inputs()
    config = model.config.to_dict()
    found = hf.fidelity(model, "softmax", inputs)
    for each in found.layers:
        assert each.fidelity.relative_error is not None
        assert each.fidelity.relative_error.mean < 1e-9
    assert len(found.bearing) == len(found.layers) >= 1
    assert model.config.to_dict() == config
    assert model.training
    assert not any(hasattr(module, "subquad") for module in model.modules())


def test_activations_are_those_of_real_tokens_in_every_head():
    model, inputs = SAMPLES["llama"].model(), SAMPLES["llama"].inputs()
    seen = hf.activations(model, inputs)
    assert [each.layer for each in seen] == ["layers.0.self_attn", "layers.1.self_attn"]
    for each in seen:
        assert each.q.shape == each.k.shape == each.v.shape == (2, 4, 11, 8)
        assert each.causal
        assert each.valid is not None
        assert each.valid.equal(inputs["attention_mask"].bool())
        assert each.k[:, 0].equal(each.k[:, 1])  # two heads share one key


def test_only_converted_layers_are_measured_of_a_converted_model():
    model, inputs = SAMPLES["bert"].model(), SAMPLES["bert"].inputs()
    whole = hf.fidelity(model, "linear", inputs)
    hf.convert(model, "performer", only="encoder.layer.1.*")
    (part,) = hf.fidelity(model, "linear", inputs).layers
    assert part.layer == "encoder.layer.1.attention.self"
    assert part.fidelity.heads == whole.layers[1].fidelity.heads
    assert sum(name.endswith(".subquad") for name, _ in model.named_modules()) == 1


@pytest.fixture
def call(command_line):
    return partial(command_line, "fidelity")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["[UNK]", *(f"w{i}" for i in range(98))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "model")
    SAMPLES["bert"].model().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % 90}" for i in range(7, 200)))
    return tmp_path


def test_the_command_measures_a_model_on_a_text(folder: Path, call: Command):
    command = [
        "--model",
        str(folder / "model"),
        "--text",
        str(folder / "text.txt"),
        "--seeds",
        "1",
    ]
    command += ["--attention", "softmax,linear", "--length", "20"]
    status, shown, _ = call(*command)
    assert status == 0
    assert "2 of 2 layers bear softmax at a threshold of 0.1" in shown
    assert "encoder.layer.0 " in shown
    rows = json.loads(call(*command, "--json")[1])["rows"]
    assert [row["attention"] for row in rows] == ["softmax", "linear"]
    assert {layer["fidelity"]["tokens"] for row in rows for layer in row["layers"]} == {20}
    hf.convert(SAMPLES["bert"].model(), "linear").save_pretrained(folder / "model")
    assert json.loads(call(*command, "--json")[1])["rows"] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model {0}/model", "--model and --text go together"),
        ("--model {0}/model --text {0}/text.txt --norms 2", "are of random q, k and v: leave them out"),
        ("--model {0}/model --text {0}/text.txt --causal", "are of random q, k and v: leave them out"),
        ("--model {0}/none --text {0}/text.txt", "has no model of transformers"),
        ("--model {0} --text {0}/text.txt", "has no model of transformers"),
        ("--model {0}/model --text {0}/none.txt", "none.txt is no text that can be read"),
        ("--model {0}/model --text {0}/empty.txt", "has too few tokens to attend to"),
        ("--model {0}/model --text {0}/text.txt --length 40 --attention reformer", "'reformer' takes no k"),
        (
            "--model {0}/model --text {0}/text.txt --length 40 --threshold nan",
            "threshold is a relative error",
        ),
        (
            "--model {0}/model --text {0}/text.txt --length 500",
            "reads 64 tokens at most, and 500 are asked for",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(folder: Path, call: Command, options: str, message: str):
    (folder / "empty.txt").write_text(" ")
    status, _, told = call(*options.format(folder).split())
    assert message in " ".join(told.split())
    assert status == 2


def test_errors_are_smaller_where_softmax_is_flatter():
    model, inputs = SAMPLES["gpt2"].model(), SAMPLES["gpt2"].inputs()
    steep = hf.fidelity(model, "linear", inputs)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :64] *= 0.05  # queries and keys
    flat = hf.fidelity(model, "linear", inputs)
    errors = [found.layers[0].fidelity.relative_error for found in (flat, steep)]
    assert errors[0] is not None
    assert errors[1] is not None
    assert errors[0].mean < 0.5 * errors[1].mean
