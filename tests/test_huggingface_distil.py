"""A converted model that learns to give what it gave before."""

import sys
from typing import Any

import pytest
import torch
from pretrained import SAMPLES, run
from torch.testing import assert_close

import subquad.integrations.huggingface as hf
from subquad.extras import MissingExtra
from subquad.integrations.huggingface.distil import divergence


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "bart"])
def test_a_model_comes_nearer_to_what_it_was(kind: str, rank: int | None):
    sample = SAMPLES[kind]
    model, inputs = sample.model(), sample.inputs()
    before = run(model, inputs)
    hf.convert(model, "linear")
    error = (run(model, inputs) - before).norm()
    frozen = next(model.parameters()).requires_grad_(False)
    names = list(model.state_dict())
    losses = hf.distil(model, [inputs] * 12, rank=rank, learning_rate=1e-3 if rank is None else 1e-2)
    assert losses[-1] < 0.6 * losses[0]
    assert (run(model, inputs) - before).norm() < 0.85 * error
    assert list(model.state_dict()) == names
    assert [x is frozen for x in model.parameters() if not x.requires_grad] == [True]
    assert all(x.isfinite().all() for x in model.parameters())


def test_without_peft_adapters_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model, inputs = hf.convert(SAMPLES["bert"].model(), "linear"), SAMPLES["bert"].inputs()
    with pytest.raises(MissingExtra, match=r'adapters need peft: pip install "subquad\[huggingface\]"'):
        hf.distil(model, [inputs], rank=2)


def test_adapters_change_attention_layers_alone_and_mechanisms_learn_beside_them():
    model, inputs = hf.convert(SAMPLES["llama"].model(), "hedgehog"), SAMPLES["llama"].inputs()
    weights = {name: x.clone() for name, x in model.named_parameters()}
    hf.distil(model, [inputs] * 3, rank=2, learning_rate=1e-2)
    changed = [name for name, x in model.named_parameters() if not x.equal(weights[name])]
    assert changed == [name for name in weights if "self_attn" in name]


def test_with_softmax_attention_there_is_nothing_to_learn():
    for kind in ("bert", "llama"):
        model, inputs = hf.convert(SAMPLES[kind].model(), "softmax"), SAMPLES[kind].inputs()
        assert hf.distil(model, [inputs])[0] == pytest.approx(0, abs=1e-5)


def test_padding_is_not_compared():
    for kind in ("bert", "llama"):
        model, ids = SAMPLES[kind].model(), torch.randint(3, 99, (2, 9))
        valid = torch.ones(2, 12, dtype=torch.int64)
        valid[:, 9:] = 0
        padded = {"input_ids": torch.cat([ids, ids[:, :3]], 1), "attention_mask": valid}
        other = hf.convert(SAMPLES[kind].model(), "linear")
        found: list[Any] = []
        for batch in ({"input_ids": ids}, padded):
            with torch.no_grad():
                found.append(divergence(other(**batch), model(**batch), batch))
        assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_model_that_was_not_converted_is_refused():
    with pytest.raises(ValueError, match="BertModel was not converted, and has nothing to win back"):
        hf.distil(SAMPLES["bert"].model(), [])


@pytest.mark.parametrize("rank", [0, -2])
def test_adapters_without_a_rank_are_refused(rank: int):
    model = hf.convert(SAMPLES["bert"].model(), "linear")
    with pytest.raises(ValueError, match=f"adapters have a rank of at least 1, not {rank}"):
        hf.distil(model, [], rank=rank)
