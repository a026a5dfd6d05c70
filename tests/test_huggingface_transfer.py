"""Mechanisms that learn from the softmax attention in whose place they stand."""

from typing import Any

import pytest
import torch
from pretrained import SAMPLES, Inputs, Sample, run
from test_huggingface import every_sample
from torch.testing import assert_close

import subquad.integrations.huggingface as hf
from subquad.integrations.huggingface.interface import Call, attending_as_before
from subquad.integrations.huggingface.transfer import error_of_outputs, error_of_weights, real_queries
from subquad.measure.fidelity import mechanism_weights, softmax_weights


def calls(model: Any, inputs: Inputs) -> list[Call]:
    seen: list[Call] = []
    with attending_as_before(seen.append):
        run(model, inputs)
    return seen


@every_sample
def test_a_converted_model_can_attend_as_before(sample: Sample):
    model, inputs = sample.model(), sample.inputs()
    before = run(model, inputs)
    hf.convert(model, "linear", only=sample.only)
    seen: list[Call] = []
    with attending_as_before(seen.append):
        assert_close(run(model, inputs), before, rtol=0, atol=0)
    assert len(seen) == len(model.config.subquad["layers"])
    assert (run(model, inputs) - before).abs().max() > 1e-2


@every_sample
def test_softmax_attention_makes_no_error_against_itself(sample: Sample):
    model, inputs = hf.convert(sample.model(), "softmax", only=sample.only), sample.inputs()
    for call in calls(model, inputs):
        assert error_of_outputs(call) < 1e-9
        real = real_queries(call)
        assert_close(
            softmax_weights(call.q, call.k, valid=call.valid, causal=call.layer.causal).transpose(1, 2)[real],
            mechanism_weights(call.layer.mechanism, *call[1:4], valid=call.valid).transpose(1, 2)[real],
            rtol=1e-4,
            atol=1e-5,
        )


def test_padding_teaches_nothing():
    model = hf.convert(SAMPLES["bert"].model(), "hedgehog")
    ids = torch.randint(3, 99, (2, 9))
    padded: Inputs = {
        "input_ids": torch.cat([ids, torch.full((2, 3), 5)], 1),
        "attention_mask": torch.cat(
            [torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)], 1
        ),
    }
    for error in (error_of_outputs, error_of_weights):
        alone = [error(call).item() for call in calls(model, {"input_ids": ids})]
        assert_close([error(call).item() for call in calls(model, padded)], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("teacher", ["outputs", "weights"])
def test_what_is_taught_is_learnt_and_the_model_stays_as_it_was(kind: str, teacher: Any):
    model, inputs = hf.convert(SAMPLES[kind].model(), "hedgehog").train(), SAMPLES[kind].inputs()
    weights = {name: x.clone() for name, x in model.named_parameters()}
    lesson = hf.transfer(model, [inputs] * 25, teacher=teacher, learning_rate=3e-2)
    assert model.training
    assert list(lesson.loss) == list(model.config.subquad["layers"])
    assert all(len(loss) == 25 and loss[-1] < 0.8 * loss[0] for loss in lesson.loss.values())
    changed = {name for name, x in model.named_parameters() if not x.equal(weights[name])}
    assert changed == {name for name in weights if ".subquad." in name}
    assert all(x.grad is None for name, x in model.named_parameters() if name not in changed)


def test_layers_learn_as_they_would_alone():
    inputs = SAMPLES["llama"].inputs()
    both, one = (SAMPLES["llama"].model() for _ in range(2))
    hf.convert(both, "hedgehog")
    hf.convert(one, "hedgehog", only="layers.1.*")
    name = "layers.1.self_attn"
    mine = both.model.get_submodule(name).subquad
    one.model.get_submodule(name).subquad.load_state_dict(mine.state_dict())
    losses = [hf.transfer(model, [inputs] * 3).loss[name] for model in (both, one)]
    assert_close(*losses)


def test_a_teacher_that_is_none_is_refused():
    model = hf.convert(SAMPLES["bert"].model(), "hedgehog")
    with pytest.raises(ValueError, match="teacher is one of outputs, weights, not 'values'"):
        hf.transfer(model, [], teacher="values")


def test_what_has_nothing_to_learn_is_refused():
    model = hf.convert(SAMPLES["bert"].model(), "performer", features=8)
    with pytest.raises(ValueError, match=r"no mechanism of this model has weights to learn \('performer'\)"):
        hf.transfer(model, [])
    with pytest.raises(ValueError, match=r"weights to learn \(none\)"):
        hf.transfer(SAMPLES["bert"].model(), [])
