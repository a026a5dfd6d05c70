"""Heads that share keys and values, and scores multiplied by another scale."""

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.sequence import make_sequence
from subquad.registry import catalog

LENGTH, DIM, HEADS = 24, 16, 4
HOLES = torch.tensor([[False] * 3 + [True] * 9 + [False] * 2 + [True] * 10, [True] * 20 + [False] * 4])
SHARING = [name for name in ONE_OF_EACH_FILE if name != "reformer"]
STREAMING = [name for name in SHARING if catalog()[name].traits.state]


def layer(attention="softmax", *, causal=None, options=None, **chosen):
    torch.manual_seed(0)
    traits = catalog()[attention].traits
    form = not traits.bidirectional if causal is None else causal
    made = {"max_len": LENGTH, "causal": form, **(options or traits.tiny), **chosen}
    return MultiheadAttention(DIM, HEADS, attention, **made).double()


def tokens(batch=2, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=generator)


def all_heads(shared, attention, **chosen):
    """The layer whose heads have keys and values of their own, equal where `shared` shares them."""
    full = layer(attention, **chosen)
    full.mechanism.load_state_dict(shared.mechanism.state_dict())
    full.out_proj.load_state_dict(shared.out_proj.state_dict())
    groups = HEADS // shared.kv_heads
    with torch.no_grad():
        for mine, theirs in (
            (full.in_proj_weight, shared.in_proj_weight),
            (full.in_proj_bias, shared.in_proj_bias),
        ):
            rows = dict(zip(full.widths, mine.split(full._rows()), strict=True))
            for name, part in zip(full.widths, theirs.split(shared._rows()), strict=True):
                repeated = part.unflatten(0, (-1, full.widths[name]))
                if name in ("k", "v"):
                    repeated = repeated.repeat_interleave(groups, 0)
                rows[name].copy_(repeated.flatten(0, 1))
    return full


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("attention", SHARING)
def test_sharing_heads_is_having_equal_ones(attention, kv_heads):
    shared, x = layer(attention, kv_heads=kv_heads), tokens()
    full = all_heads(shared, attention)
    dirty = x.masked_fill(~HOLES[..., None], torch.nan)
    expected, _ = full(x, x, x, key_padding_mask=~HOLES)
    assert_close(shared(dirty, dirty, dirty, key_padding_mask=~HOLES)[0][HOLES], expected[HOLES])
    assert shared.in_proj_weight.shape[0] < full.in_proj_weight.shape[0]


@pytest.mark.parametrize("attention", SHARING)
def test_as_many_heads_of_keys_as_of_queries_is_the_layer_without_sharing_bit_by_bit(attention):
    x = tokens()
    plain, same = layer(attention), layer(attention, kv_heads=HEADS)
    assert_close(same.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(same(x, x, x)[0], plain(x, x, x)[0])


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shared_softmax_equals_torchs_fused_attention(kv_heads, causal, scale):
    module, x = layer(causal=causal, kv_heads=kv_heads, scale=scale), tokens()
    q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).split(module._rows(), -1)
    q, k, v = (part.unflatten(-1, (-1, DIM // HEADS)).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
    assert_close(module(x, x, x)[0], module.out_proj(mixed.transpose(1, 2).flatten(2)))


def test_a_shared_rotary_layer_is_llamas():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=2, rope_theta=10_000.0
    )
    config._attn_implementation = "sdpa"
    theirs, x = llama.LlamaAttention(config, layer_idx=0).double(), tokens()
    module = layer(causal=True, rotary=True, kv_heads=2, bias=False)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([getattr(theirs, f"{name}_proj").weight for name in "qkv"]))
        module.out_proj.weight.copy_(theirs.o_proj.weight)
    turning = llama.LlamaRotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    expected, _ = theirs(x, position_embeddings=turning, attention_mask=None)
    assert_close(module(x, x, x)[0], expected)


@pytest.mark.parametrize("attention", STREAMING)
def test_a_stream_with_shared_heads_equals_the_sequence(attention):
    rotary = attention == "linear"
    module, x = layer(attention, causal=True, kv_heads=2, rotary=rotary), tokens()
    expected, _ = module(x, x, x, key_padding_mask=~HOLES)
    state, outputs = None, []
    for part, valid in zip(x.split((5, 1, 18), 1), HOLES.split((5, 1, 18), 1), strict=True):
        out, state = module.step(part, valid=valid, state=state)
        outputs.append(out)
    assert_close(torch.cat(outputs, 1)[HOLES], expected[HOLES])


def test_shared_heads_take_a_second_sequence():
    module, query, memory = layer(kv_heads=1), tokens(length=7), tokens(seed=2)
    full = all_heads(module, "softmax")
    mask = {"key_padding_mask": ~HOLES}
    assert_close(module(query, memory, memory, **mask)[0], full(query, memory, memory, **mask)[0])


def test_shared_heads_begin_with_the_spread_of_those_that_are_not():
    plain, shared = (MultiheadAttention(256, 8, kv_heads=heads) for heads in (8, 1))
    q, k, v = shared.in_proj_weight.split(shared._rows())
    assert_close(torch.stack([k.std(), v.std()]), plain.in_proj_weight.std().expand(2), rtol=0.05, atol=0)
    assert [len(x) for x in (q, k, v)] == [256, 32, 32]


@pytest.mark.parametrize(
    ("attention", "chosen", "message"),
    [
        ("softmax", {"kv_heads": 3}, "num_heads=4 do not share kv_heads=3 evenly: take a divisor"),
        ("softmax", {"kv_heads": 0}, "num_heads=4 do not share kv_heads=0 evenly"),
        ("reformer", {"kv_heads": 2}, "'reformer' makes its keys of queries"),
        ("softmax", {"scale": 0.0}, "scale multiplies scores, and is a positive number or None, not 0.0"),
        ("softmax", {"scale": torch.nan}, "positive number or None, not nan"),
        ("softmax", {"scale": True}, "positive number or None, not True"),
    ],
)
def test_what_cannot_be_shared_or_scaled_is_refused(attention, chosen, message):
    with pytest.raises(ValueError, match=message):
        layer(attention, **chosen)


def test_torchs_weights_are_not_shared():
    theirs = torch.nn.MultiheadAttention(DIM, HEADS)
    with pytest.raises(ValueError, match="keys and values for each of 4 heads: leave out kv_heads"):
        MultiheadAttention.from_torch(theirs, kv_heads=2)
    assert MultiheadAttention.from_torch(theirs, kv_heads=HEADS, scale=0.5).scale == 0.5


WITHOUT_SCORES = [
    *(name for name in ONE_OF_EACH_FILE if not layer(name).mechanism.score_inputs()),
    *("performer:relu", "performer:normalise", "poolingformer:y"),
]
OPTIONS = {"relu": {"map": "relu"}, "normalise": {"normalise": True}, "y": {"second": "y"}}


@pytest.mark.parametrize("case", WITHOUT_SCORES)
def test_a_scale_is_refused_where_there_are_no_scores(case):
    attention, _, options = case.partition(":")
    with pytest.raises(ValueError, match=f"'{attention}' with these options does not weigh keys by scores"):
        layer(attention, scale=0.5, **OPTIONS.get(options, {}))


def test_a_scale_is_not_refused_everywhere():
    assert {"softmax", "performer", "local", "longformer", "linformer", "taylor"}.isdisjoint(WITHOUT_SCORES)
    assert {"linear", "cosformer", "dpfp", "routing", "delta", "retention"} <= {*WITHOUT_SCORES}


LIMITS = [name for name, cls in catalog().items() if cls.traits.limit is not None]


@pytest.mark.parametrize("scale", [0.2, 0.9])
@pytest.mark.parametrize("attention", LIMITS)
def test_in_its_limit_a_mechanism_with_a_scale_is_softmax_with_that_scale(attention, scale):
    traits, x = catalog()[attention].traits, tokens() / 2
    causal = traits.causal == "strict"
    module = layer(attention, causal=causal, options=traits.limit, scale=scale)
    exact, uniform = (layer(causal=causal, scale=softmax_scale) for softmax_scale in (scale, 1e-9))
    for other in (exact, uniform):  # without what else the mechanism projects to
        own = other.state_dict()
        shared = {name: x[: len(own[name])] for name, x in module.state_dict().items() if name in own}
        other.load_state_dict(shared)
    out, expected, worst = (part(x, x, x)[0] for part in (module, exact, uniform))
    assert (out - expected).norm() / (worst - expected).norm() <= traits.limit_tol


@pytest.mark.parametrize("attention", [name for name in ONE_OF_EACH_FILE if name not in {*WITHOUT_SCORES}])
def test_a_scale_of_one_over_the_root_of_the_width_changes_nothing(attention):
    plain, x = layer(attention), tokens()
    module = layer(attention, scale=plain.widths["q"] ** -0.5)
    assert_close(module(x, x, x)[0], plain(x, x, x)[0])


@pytest.mark.parametrize("attention", ["taylor", "longformer", "poolingformer", "local"])
def test_a_scale_is_as_if_queries_were_longer(attention):
    plain, x = layer(attention), tokens()
    module = layer(attention, scale=3 * plain.widths["q"] ** -0.5)
    with torch.no_grad():
        rows = dict(zip(plain.widths, plain.in_proj_weight.split(plain._rows()), strict=True))
        for name, weight in rows.items():
            if name.startswith("q"):
                weight.mul_(3)
    assert_close(module(x, x, x)[0], plain(x, x, x)[0])


@pytest.mark.parametrize("attention", ["softmax", "linear", "local"])
def test_an_encoder_shares_and_scales_in_all_its_layers(attention):
    torch.manual_seed(0)
    scale = None if attention == "linear" else 0.7
    chosen = {"dim": DIM, "depth": 2, "heads": HEADS, "causal": True, "positions": "rotary"}
    options = dict(catalog()[attention].traits.tiny)
    model = Encoder(
        EncoderConfig(attention=attention, options=options, kv_heads=2, scale=scale, **chosen)
    ).double()
    layers = [part for part in model.modules() if isinstance(part, MultiheadAttention)]
    assert [(part.kv_heads, part.scale) for part in layers] == [(2, scale)] * 2
    x, expected, state = tokens(), model(tokens(), HOLES), None
    for start, end in ((0, 7), (7, LENGTH)):
        seen = HOLES[:, start:end]
        out, state = model.step(x[:, start:end], valid=seen, state=state)
        assert_close(out[seen], expected[:, start:end][seen])


def test_attending_to_a_sequence_is_the_call_without_torchs_conventions():
    for batch_first in (True, False):
        module, x = layer(batch_first=batch_first), tokens()
        sequence, end = make_sequence(x, valid=HOLES)
        swapped = x if batch_first else x.transpose(0, 1)
        expected, _ = module(swapped, swapped, swapped, key_padding_mask=~HOLES)
        assert torch.equal(module.attend(sequence), expected if batch_first else expected.transpose(0, 1))
        assert end.tolist() == HOLES.sum(1).tolist()


def test_an_exported_layer_shares_and_scales():
    module, x = layer(causal=True, kv_heads=2, scale=0.4, rotary=True).eval(), tokens()
    expected, _ = module(x, x, x)
    program = torch.export.export(module, (x, x, x)).module()
    assert_close(program(x, x, x)[0], expected)
