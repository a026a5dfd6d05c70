"""Converted models that generate: a state in the place of keys and values."""

from typing import Any

import pytest
import torch
from pretrained import SAMPLES
from test_huggingface import CAUSAL, tiny
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, LlamaForCausalLM

import subquad.integrations.huggingface as hf
from subquad import catalog

STREAMING = [name for name in CAUSAL if catalog()[name].traits.state]
OWN_POSITIONS = {"transformer-xl", "compressive"}  # which rotary models refuse
PROMPTS = torch.randint(3, 99, (2, 11), generator=torch.Generator().manual_seed(0))
VALID = torch.ones(2, 11, dtype=torch.int64).index_fill(1, torch.arange(4), 0) | torch.tensor([[1], [0]])
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "in chunks": {"do_sample": False, "prefill_chunk_size": 4},
}


def generated(model: Any, tokens: int = 6, **options: Any) -> Tensor:
    torch.manual_seed(3)
    options = {"input_ids": PROMPTS, "attention_mask": VALID, **options}
    return model.generate(**options, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generating_with_a_state_is_computing_all_anew(kind: str, name: str):
    if kind == "llama" and name in OWN_POSITIONS:
        return
    model = hf.convert(SAMPLES[kind].model().double(), name, **tiny(name))
    for way in ("greedy", "beams") if name != "performer" else WAYS:
        cache = hf.Cache(model)
        anew = {key: x for key, x in WAYS[way].items() if key != "prefill_chunk_size"}
        whole = generated(model, use_cache=False, **anew)
        assert generated(model, past_key_values=cache, **WAYS[way]).equal(whole)
        assert cache.get_seq_length() == 11 + 5


@pytest.mark.parametrize("name", STREAMING)
def test_prompts_with_padding_before_them_go_on_as_alone(name: str):
    model = hf.convert(SAMPLES["gpt2"].model().double(), name, **tiny(name))
    together = generated(model, past_key_values=hf.Cache(model))[1, 4:]
    row: dict[str, Any] = {"input_ids": PROMPTS[1:, 4:], "attention_mask": VALID[1:, 4:]}
    assert together.equal(generated(model, past_key_values=hf.Cache(model), **row)[0])


def test_logits_of_each_step_are_those_of_the_whole():
    model = hf.convert(SAMPLES["llama"].model().double(), "performer", features=16)
    whole = model(input_ids=PROMPTS).logits
    cache = hf.Cache(model)
    parts = [model(input_ids=part, past_key_values=cache).logits for part in PROMPTS.split([5, 1, 3, 2], 1)]
    assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_layers_that_were_not_converted_keep_keys_and_values(kind: str):
    model = SAMPLES[kind].model().double()
    hf.convert(model, "linear", only="layers.0.*")
    cache = hf.Cache(model)
    assert generated(model, past_key_values=cache).equal(generated(model, use_cache=False))
    assert cache.layers[1].keys is not None


def test_an_encoder_decoder_keeps_what_the_encoder_gave():
    model = hf.convert(SAMPLES["bart"].model().double(), "linear")
    cache = hf.Cache(model)
    assert isinstance(cache, EncoderDecoderCache)
    assert generated(model, past_key_values=cache, num_beams=2).equal(
        generated(model, use_cache=False, num_beams=2)
    )
    assert isinstance(cache.self_attention_cache, hf.Cache)


def test_a_cache_that_was_emptied_is_as_new():
    model = hf.convert(SAMPLES["llama"].model(), "linear")
    cache = hf.Cache(model)
    first = generated(model, past_key_values=cache)
    assert cache.size > 0
    cache.reset()
    assert (cache.size, cache.get_seq_length()) == (0, 0)
    assert generated(model, past_key_values=cache).equal(first)


def test_rows_of_a_cache_are_repeated_and_chosen():
    model = hf.convert(SAMPLES["llama"].model().double(), "linear")
    cache = hf.Cache(model)
    model(input_ids=PROMPTS, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    after = model(input_ids=PROMPTS[:, :1], past_key_values=cache).logits
    whole = model(input_ids=torch.cat([PROMPTS, PROMPTS[:, :1]], 1)).logits[:, -1:]
    assert_close(after, whole)


def test_the_state_does_not_grow_in_ten_thousand_tokens():
    """Most of them read as one prompt: a token that a state kept would show among few."""
    config = LlamaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size = 16
    model = hf.convert(LlamaForCausalLM(config).eval(), "performer", features=8)
    cache = hf.Cache(model)
    ids = generated(model, tokens=2, past_key_values=cache, input_ids=PROMPTS[:1], attention_mask=VALID[:1])
    early = cache.size
    ids = torch.cat([ids, torch.randint(3, 99, (1, 9_900))], 1)
    generated(model, tokens=100, past_key_values=cache, input_ids=ids, attention_mask=None)
    assert cache.get_seq_length() == 11 + 2 + 10_000 - 1
    assert cache.size == early


def test_transformers_own_cache_is_refused_with_the_remedy():
    model = hf.convert(SAMPLES["llama"].model(), "linear")
    with pytest.raises(
        ValueError, match=r"past_key_values=subquad\.integrations\.huggingface\.Cache\(model\)"
    ):
        generated(model)
    with pytest.raises(ValueError, match="this cache holds keys and values"):
        generated(model, past_key_values=DynamicCache(config=model.config))


def test_what_has_no_state_is_refused():
    model = hf.convert(SAMPLES["llama"].model(), "poolingformer", **tiny("poolingformer"))
    with pytest.raises(ValueError, match=r"'poolingformer' cannot stream \(layer layers\.0\.self_attn\)"):
        hf.Cache(model)
    assert generated(model, use_cache=False).shape == (2, 17)
    with pytest.raises(ValueError, match="has no converted layer that reads from left to right"):
        hf.Cache(SAMPLES["llama"].model())
    with pytest.raises(ValueError, match=r"a Linear is no transformers\.PreTrainedModel"):
        hf.Cache(torch.nn.Linear(2, 2))


def test_assisted_generation_is_refused():
    model, assistant = hf.convert(SAMPLES["llama"].model(), "linear"), SAMPLES["llama"].model()
    row: dict[str, Any] = {"input_ids": PROMPTS[:1], "attention_mask": VALID[:1]}
    with pytest.raises(ValueError, match="a state does not give tokens back"):
        generated(model, past_key_values=hf.Cache(model), assistant_model=assistant, **row)
    with pytest.raises(ValueError, match="a state does not give tokens back"):
        generated(model, past_key_values=hf.Cache(model), prompt_lookup_num_tokens=2, **row)
