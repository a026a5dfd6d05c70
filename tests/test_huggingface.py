"""Pretrained models with mechanisms: what they give, keep, save and refuse."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mechanism_names import ONE_OF_EACH_FILE
from pretrained import SAMPLES, SMALL, Sample, run
from torch.testing import assert_close
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import subquad.integrations.huggingface as hf
from subquad import Dims, build, catalog
from subquad.nn import redraw

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def fits(name: str, *, causal: bool) -> bool:
    traits = catalog()[name].traits
    if not (traits.causal == "strict" if causal else traits.bidirectional):
        return False
    mechanism = build(name, Dims(heads=4, head_dim=8, max_len=64), causal=causal)
    return mechanism.projections() == dict.fromkeys("qkv", 8)


CAUSAL = [name for name in ONE_OF_EACH_FILE if fits(name, causal=True)]
BIDIRECTIONAL = [name for name in ONE_OF_EACH_FILE if fits(name, causal=False)]


def tiny(name: str) -> dict[str, Any]:
    return dict(catalog()[name].traits.tiny)


@every_sample
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_with_softmax_attention_a_converted_model_gives_what_it_gave(sample: Sample, implementation: str):
    model, inputs = sample.model(implementation), sample.inputs()
    before = run(model, inputs)
    hf.convert(model, "softmax", only=sample.only)
    assert model.config.subquad["layers"]
    assert_close(run(model, inputs), before, rtol=2e-4, atol=2e-4)


@every_sample
def test_another_attention_gives_something_else_and_weights_are_the_very_same(sample: Sample):
    model, inputs = sample.model(), sample.inputs()
    before, weights = run(model, inputs), dict(model.named_parameters())
    assert hf.convert(model, "linear", only=sample.only) is model
    assert (run(model, inputs) - before).abs().max() > 1e-2
    assert {name: id(x) for name, x in model.named_parameters()} == {n: id(x) for n, x in weights.items()}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_padding_is_absent_in_an_encoder(name: str):
    model = hf.convert(SAMPLES["bert"].model(), name, **tiny(name))
    ids = torch.randint(3, 99, (1, 9))
    padded = torch.cat([ids, torch.full((1, 4), 7)], 1)
    valid = torch.ones_like(padded)
    valid[:, 9:] = 0
    alone = run(model, {"input_ids": ids})
    assert_close(
        run(model, {"input_ids": padded, "attention_mask": valid})[:, :9], alone, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_a_decoder_does_not_see_what_comes_after(name: str):
    model = hf.convert(SAMPLES["gpt2"].model(), name, **tiny(name))
    ids = torch.randint(3, 99, (1, 14))
    assert_close(
        run(model, {"input_ids": ids})[:, :9], run(model, {"input_ids": ids[:, :9]}), rtol=1e-3, atol=1e-3
    )


def test_layers_that_are_not_chosen_attend_as_before():
    sample = SAMPLES["bert"]
    model, inputs = sample.model(), sample.inputs()
    before = run(model, inputs)
    hf.convert(model, "softmax", only="encoder.layer.1.*")
    assert sum("subquad" in name for name, _ in model.named_modules()) == 2  # the layer and its mechanism
    assert_close(run(model, inputs), before, rtol=2e-4, atol=2e-4)
    hf.convert(model, "linear", only="encoder.layer.1.*")
    first = model.encoder.layer[0].attention.self
    assert first.subquad is None
    assert (run(model, inputs) - before).abs().max() > 1e-2


def test_a_network_mixes_mechanisms_layer_by_layer():
    model = SAMPLES["llama"].model()
    hf.convert(model, "linear+softmax")
    assert [layer.self_attn.subquad.attention for layer in model.model.layers] == ["linear", "softmax"]
    with pytest.raises(ValueError, match="is a network of 3 layers, and 2 are asked for"):
        hf.convert(model, "linear*2+softmax")


@pytest.mark.parametrize("kind", ["qwen2", "modernbert"])
def test_layers_with_a_window_stay_and_local_takes_their_window(kind: str):
    sample = SAMPLES[kind]
    model, inputs = sample.model(), sample.inputs()
    windowed = [m for m in model.modules() if getattr(m, "sliding_window", None) is not None]
    before = run(model, inputs)
    hf.convert(model, "linear")
    assert windowed
    assert all(module.subquad is None for module in windowed)
    again = sample.model()
    names = [n for n, m in again.base_model.named_modules() if getattr(m, "sliding_window", None) is not None]
    for name in names:
        hf.convert(again, "local", only=name)
    assert_close(run(again, inputs), before, rtol=2e-4, atol=2e-4)
    with pytest.raises(ValueError, match="'local' with these options sees farther"):
        hf.convert(again, "local", only=names[0], width=9)
    with pytest.raises(ValueError, match="all of these layers have sliding windows"):
        hf.convert(again, "linear", only=names[0])


def test_a_model_whose_windows_are_its_configurations():
    model = MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4)).eval()
    inputs = SAMPLES["llama"].inputs()
    before = run(model, inputs)
    with pytest.raises(ValueError, match="beyond which a token sees nothing"):
        hf.convert(model, "linear")
    assert_close(run(hf.convert(model, "local"), inputs), before, rtol=2e-4, atol=2e-4)
    model.config.sliding_window = 3
    with pytest.raises(ValueError, match="'local' would look beyond the model's window of 2 tokens"):
        run(model, inputs)


@pytest.mark.parametrize(("kind", "name"), [("bert", "performer"), ("llama", "hedgehog"), ("bart", "linear")])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_what_was_saved_is_loaded_with_its_mechanisms(kind: str, name: str, size: str, tmp_path: Path):
    sample = SAMPLES[kind]
    model, inputs = hf.convert(sample.model(), name), sample.inputs()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or size == "20KB"
    loaded = hf.from_pretrained(str(tmp_path))
    assert type(loaded) is type(model)
    assert_close(run(loaded.eval(), inputs), run(model, inputs), rtol=0, atol=0)
    assert loaded.config.subquad == model.config.subquad


def test_a_saved_model_is_loaded_without_its_head(tmp_path: Path):
    config = transformers.BertConfig(**SMALL)
    model = hf.convert(BertForMaskedLM(config).eval(), "performer", features=16)
    model.save_pretrained(tmp_path)
    inputs = SAMPLES["bert"].inputs()
    loaded = hf.from_pretrained(str(tmp_path), model_class=BertModel, add_pooling_layer=False)
    assert type(loaded) is BertModel
    assert_close(run(loaded.eval(), inputs), run(model.bert, inputs), rtol=0, atol=0)


def test_transformers_alone_does_not_load_a_converted_model_as_another(tmp_path: Path):
    hf.convert(SAMPLES["bert"].model(), "linear").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"load a converted model with subquad\.integrations\.huggingface"):
        AutoModel.from_pretrained(tmp_path)(torch.ones(1, 3, dtype=torch.int64))
    SAMPLES["bert"].model().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is not a converted model"):
        hf.from_pretrained(str(tmp_path / "plain"))


def test_a_saved_model_that_lacks_a_mechanism_is_refused(tmp_path: Path):
    model = hf.convert(SAMPLES["bert"].model(), "performer", features=16)
    state = {
        name: x for name, x in model.state_dict().items() if "layer.1.attention.self.subquad" not in name
    }
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"does not hold the mechanism of layer encoder\.layer\.1"):
        hf.from_pretrained(str(tmp_path))


def test_half_precision_copies_and_devices_follow_the_model():
    inputs = SAMPLES["bert"].inputs()
    model = hf.convert(SAMPLES["bert"].model().bfloat16(), "performer", features=16)
    assert {x.dtype for x in model.encoder.layer[0].attention.self.subquad.buffers()} == {torch.bfloat16}
    assert run(model, inputs).isfinite().all()
    assert_close(run(copy.deepcopy(model), inputs), run(model, inputs), rtol=0, atol=0)
    assert {x.device.type for x in copy.deepcopy(model).to("meta").buffers()} == {"meta"}


def test_what_a_mechanism_learns_gets_gradients_through_checkpoints():
    model = hf.convert(SAMPLES["llama"].model(), "hedgehog").train()
    model.activation_checkpointing_enable()
    ids = torch.randint(3, 99, (2, 9))
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    learnt = [x for name, x in model.named_parameters() if ".subquad." in name]
    assert learnt
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in learnt)


def test_random_features_are_drawn_anew_in_training():
    model = hf.convert(SAMPLES["llama"].model(), "performer", features=16, redraw_every=2).train()
    first = {name: x.clone() for name, x in model.named_buffers() if ".subquad." in name}
    assert redraw(model, step=2, seed=0)
    assert any(not x.equal(first[name]) for name, x in model.named_buffers() if ".subquad." in name)


def test_a_layer_can_be_converted_again():
    sample = SAMPLES["gpt2"]
    model, inputs = sample.model("eager"), sample.inputs()
    before = run(model, inputs)
    hf.convert(hf.convert(model, "linear"), "softmax")
    assert model.config.subquad["before"] == "eager"
    assert_close(run(model, inputs), before, rtol=2e-4, atol=2e-4)


def test_dropout_of_attention_weights_is_refused_and_can_be_taken_out():
    inputs = SAMPLES["bert"].inputs()
    for kind in ("bert", "gpt2", "bart", "distilbert"):
        model, inputs = SAMPLES[kind].model(), SAMPLES[kind].inputs()
        if kind == "bart":
            for layer in model.modules():
                if type(layer).__name__ == "BartAttention":
                    layer.dropout = 0.1
        hf.convert(model, "linear").train()
        with pytest.raises(
            ValueError, match=r"call subquad\.integrations\.huggingface\.disable_attention_dropout"
        ):
            run(model, inputs)
        run(hf.disable_attention_dropout(model), inputs)


def called(kind: str, **options: Any) -> Callable[[], Any]:
    def call() -> Any:
        model = hf.convert(SAMPLES[kind].model(), "linear")
        ids = torch.randint(3, 99, (2, 6))
        return model(**{"input_ids": ids, **options})

    return call


PACKED = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": False}
TRIANGLE = torch.ones(2, 1, 6, 6).tril()
REFUSED = {
    "packed sequences": (called("llama", **PACKED), "keeps more apart than padding"),
    "a mask of pairs": (called("llama", attention_mask=TRIANGLE), "says who may see whom"),
    "a mask of pairs, both ways": (called("bert", attention_mask=TRIANGLE), "says who may see whom"),
    "weights": (called("llama", output_attentions=True), "output_attentions asks for attention weights"),
    "weights of an encoder": (called("bert", output_attentions=True), "output_attentions asks for"),
    "a short mask": (called("bert", attention_mask=torch.ones(2, 4)), "attention_mask speaks of 4 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_call_asks_beyond_padding_is_refused(case: str):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("LongformerModel", "LongformerConfig"),
        ("BigBirdModel", "BigBirdConfig"),
        ("XLNetModel", "XLNetConfig"),
        ("DebertaV2Model", "DebertaV2Config"),
    ],
)
def test_models_that_attend_by_code_of_their_own_are_refused(model: str, config: str):
    sizes: dict[str, Any] = {**SMALL, "attention_window": 4} if "Longformer" in model else {**SMALL}
    if "XLNet" in model:
        sizes = {"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48, "vocab_size": 99}
    theirs = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    with pytest.raises(ValueError, match=f"{model} attends by code of its own, and would ignore a mechanism"):
        hf.convert(theirs, "linear")


def refusal(kind: str, *arguments: Any, **options: Any) -> str:
    model = SAMPLES[kind].model()
    with pytest.raises(ValueError) as raised:  # noqa: PT011, the message is what is returned
        hf.convert(model, *arguments, **options)
    assert model.config._attn_implementation == "sdpa"
    assert not any("subquad" in name for name, _ in model.named_modules())
    return str(raised.value)


def test_what_cannot_be_converted_is_listed_with_the_reason_and_nothing_is_changed():
    assert "SelfAttention: it adds a bias to scores by position" in refusal("t5", "linear")
    assert "decoder.block.1.layer.0.SelfAttention" in refusal("t5", "linear")
    message = refusal("bert", "reformer")
    assert "encoder.layer.0.attention.self, encoder.layer.1.attention.self: 'reformer' takes no k" in message
    assert "did you mean 'linear'" in refusal("bert", "liner")
    assert "has no option 'feature'; did you mean 'features'" in refusal("bert", "performer", feature=3)
    assert "only='decoder.*' fits no attention layer; there are encoder.layer.0" in refusal(
        "bert", "linear", only="decoder.*"
    )
    assert "has no causal form" in refusal("gpt2", "nystromformer")
    assert "'informer' knows the future by its choice of keys" in refusal("gpt2", "informer")
    assert "'transformer-xl' has relative positions of its own" in refusal("llama", "transformer-xl")
    assert "'linear' has no option 'heads'" in refusal("bert", "linear", heads=2)
    assert "Dims.max_len must be at least 1, not 0" in refusal("bert", "linear", max_len=0)
    assert "'conformer' has a whole layer" in refusal("bert", "conformer")


def test_scores_that_are_bounded_are_refused():
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8))
    with pytest.raises(ValueError, match="it bounds its scores"):
        hf.convert(model, "linear")


def test_a_decoder_made_to_see_both_ways_is_told_apart():
    model = hf.convert(LlamaForCausalLM(LlamaConfig(**SMALL)), "linear")
    model.config.is_causal = False
    with pytest.raises(
        ValueError, match="a bidirectional mask for a layer that was converted with causal=True"
    ):
        run(model, SAMPLES["llama"].inputs())
