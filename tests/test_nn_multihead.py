"""The attention layer: torch's signature and weights around any mechanism."""

from dataclasses import replace

import pytest
import torch
from mechanism_names import FORMS, STREAMING
from torch import nn
from torch.testing import assert_close

from subquad.mechanisms.softmax import SoftmaxAttention
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.sequence import Sequence
from subquad.registry import catalog

CAUSAL = [name for name, causal in FORMS if causal]
LENGTH = 24
HOLES = torch.tensor([[False] * 3 + [True] * 9 + [False] * 2 + [True] * 10, [True] * 20 + [False] * 4])
CHUNKS = {"whole": (24,), "tokens": (1,) * 24, "fives": (5, 5, 5, 5, 4), "uneven": (0, 2, 9, 0, 13)}
FUTURE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def layer(attention: str = "softmax", *, causal: bool = False, **chosen) -> MultiheadAttention:
    torch.manual_seed(0)
    options = {**catalog()[attention].traits.tiny, **chosen}
    accepted = "values" if causal else False  # what a causal form is, where there is none but that
    return MultiheadAttention(8, 2, attention, causal=accepted, max_len=LENGTH, **options).double()


def torch_layer(*, bias: bool = True, batch_first: bool = True) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    return theirs


def tokens(batch: int = 2, length: int = LENGTH, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_softmax_with_torchs_weights_equals_torch(bias, padded):
    theirs, x = torch_layer(bias=bias), tokens()
    mask = ~HOLES if padded else None
    ours = MultiheadAttention.from_torch(theirs)
    expected, _ = theirs(x, x, x, key_padding_mask=mask, need_weights=False)
    assert_close(ours(x, x, x, key_padding_mask=mask)[0][HOLES], expected[HOLES])


def test_causal_softmax_equals_torch_with_its_causal_mask():
    theirs, x = torch_layer(), tokens()
    ours = MultiheadAttention.from_torch(theirs, causal=True)
    expected, _ = theirs(x, x, x, attn_mask=FUTURE, is_causal=True, need_weights=False)
    assert_close(ours(x, x, x)[0], expected)


def test_cross_attention_equals_torch():
    theirs, query, memory = torch_layer(), tokens(length=7), tokens()
    ours = MultiheadAttention.from_torch(theirs)
    expected, _ = theirs(query, memory, memory + 1, key_padding_mask=~HOLES, need_weights=False)
    assert_close(ours(query, memory, memory + 1, key_padding_mask=~HOLES)[0], expected)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_state_dicts_pass_both_ways(attention):
    theirs, ours = torch_layer(), layer(attention)
    ours.load_state_dict(theirs.state_dict())
    back = nn.MultiheadAttention(8, 2, batch_first=True).double()
    back.load_state_dict(ours.state_dict())
    assert_close(back.state_dict(), theirs.state_dict())


def test_gradients_equal_torchs():
    theirs, x = torch_layer(), tokens()
    ours = MultiheadAttention.from_torch(theirs)
    for module in (theirs, ours):
        module(x, x, x, key_padding_mask=~HOLES, need_weights=False)[0][HOLES].square().sum().backward()
    for name, parameter in theirs.named_parameters():
        assert_close(ours.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize(
    "attention", [name for name in sorted({name for name, _ in FORMS}) if name != "reformer"]
)
def test_torchs_weights_are_the_first_rows_of_any_mechanism(attention):
    theirs = torch_layer()
    causal = not catalog()[attention].traits.bidirectional
    options = dict(catalog()[attention].traits.tiny)
    ours = MultiheadAttention.from_torch(theirs, attention, causal=causal, max_len=LENGTH, **options)
    assert_close(ours.in_proj_weight[:24], theirs.in_proj_weight)
    assert_close(ours.in_proj_bias[:24], theirs.in_proj_bias)
    assert_close(ours.out_proj.weight, theirs.out_proj.weight)


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_from_torch_keeps_its_mode_and_dtype(training):
    ours = MultiheadAttention.from_torch(torch_layer().train(training), "performer")
    assert all(module.training == training for module in ours.modules())
    assert all(parameter.dtype == torch.float64 for parameter in ours.parameters())


def test_projections_start_with_torchs_spread():
    theirs, ours = nn.MultiheadAttention(64, 2), MultiheadAttention(64, 2)
    assert_close(ours.in_proj_weight.std(), theirs.in_proj_weight.std(), rtol=0.05, atol=0)
    assert not ours.in_proj_bias.any()
    assert not ours.out_proj.bias.any()


@pytest.mark.parametrize(("attention", "causal"), FORMS)
def test_nan_at_padding_changes_nothing_forward_or_backward(attention, causal):
    module, x = layer(attention, causal=causal), tokens()
    gradients = []
    for filler in (0.0, torch.nan):
        module.zero_grad()
        filled = x.masked_fill(~HOLES[..., None], filler).requires_grad_()
        out, _ = module(filled, filled, filled, key_padding_mask=~HOLES)
        out[HOLES].square().sum().backward()
        gradients.append((out[HOLES], filled.grad, *(p.grad for p in module.parameters())))
    assert_close(gradients[1], gradients[0])


def test_nan_at_padding_of_keys_and_values_alone_changes_nothing():
    module, query, results = layer(), tokens(length=7), []
    for filler in (0.0, torch.nan):
        module.zero_grad()
        key = tokens().masked_fill(~HOLES[..., None], filler)
        out, _ = module(query, key, key + 1, key_padding_mask=~HOLES)
        out.square().sum().backward()
        results.append((out, *(parameter.grad for parameter in module.parameters())))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("attention", STREAMING)
def test_nan_at_padding_changes_nothing_in_a_stream(attention):
    module, results = layer(attention, causal=True), []
    for filler in (0.0, torch.nan):
        module.zero_grad()
        x = tokens().masked_fill(~HOLES[..., None], filler)
        first, state = module.step(x[:, :12], valid=HOLES[:, :12])
        second, _ = module.step(x[:, 12:], valid=HOLES[:, 12:], state=state)
        real = torch.cat([first, second], 1)[HOLES]
        real.square().sum().backward()
        results.append((real, *(parameter.grad for parameter in module.parameters())))
    assert_close(results[1], results[0])


@pytest.mark.parametrize(("attention", "causal"), FORMS)
def test_float_and_boolean_padding_masks_say_the_same(attention, causal):
    module, x = layer(attention, causal=causal), tokens()
    scores = torch.zeros(2, LENGTH).masked_fill(~HOLES, -torch.inf)
    expected, _ = module(x, x, x, key_padding_mask=~HOLES)
    assert_close(module(x, x, x, key_padding_mask=scores)[0], expected)


@pytest.mark.parametrize("value", [-1e9, 0.5, torch.inf, torch.nan])
def test_finite_scores_in_a_mask_are_refused(value):
    module, x = layer(), tokens()
    scores = torch.zeros(2, LENGTH).masked_fill(~HOLES, value)
    with pytest.raises(ValueError, match="key_padding_mask may hold 0 and -inf only: give a boolean mask"):
        module(x, x, x, key_padding_mask=scores)


def test_a_padding_mask_of_another_shape_is_refused():
    module, x = layer(), tokens()
    with pytest.raises(ValueError, match=r"padding of shape \(1, 24\) for keys of \(2, 24\)"):
        module(x, x, x, key_padding_mask=~HOLES[:1])


@pytest.mark.parametrize(("attention", "causal"), FORMS)
def test_an_unbatched_input_is_a_batch_of_one(attention, causal):
    module, x = layer(attention, causal=causal), tokens()
    alone = x[1]
    expected, _ = module(x, x, x, key_padding_mask=~HOLES)
    out, weights = module(alone, alone, alone, key_padding_mask=~HOLES[1])
    assert weights is None
    assert_close(out[HOLES[1]], expected[1][HOLES[1]])


@pytest.mark.parametrize("attention", CAUSAL)
def test_a_causal_layer_takes_the_causal_mask(attention):
    module, x = layer(attention, causal=True), tokens()
    expected, _ = module(x, x, x)
    square = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    for mask in (None, FUTURE, square):
        for hint in (False, True) if mask is not None else (True,):
            assert_close(module(x, x, x, attn_mask=mask, is_causal=hint)[0], expected)


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(LENGTH, LENGTH, dtype=torch.bool), FUTURE.mT, FUTURE[:5, :5], FUTURE.expand(4, -1, -1)],
    ids=["everything", "transposed", "small", "per head"],
)
def test_a_causal_layer_refuses_other_masks(mask):
    module, x = layer(causal=True), tokens()
    with pytest.raises(ValueError, match=r"not the square causal mask.*leave it out"):
        module(x, x, x, attn_mask=mask)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"is_causal": True}, "build it with causal=True"),
        ({"attn_mask": FUTURE}, "give padding as key_padding_mask"),
        ({"need_weights": True}, "need_weights=False"),
    ],
)
def test_what_a_bidirectional_layer_cannot_do_is_refused(asked, remedy):
    module, x = layer(), tokens()
    with pytest.raises(ValueError, match=remedy):
        module(x, x, x, **asked)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"dropout": 0.1}, "set it to 0"),
        ({"kdim": 4}, "kdim=4 is not supported: project keys"),
        ({"vdim": 4}, "vdim=4 is not supported: project values"),
        ({"add_bias_kv": True}, "append a learnt token"),
        ({"add_zero_attn": True, "embed_dim": 1, "num_heads": 1}, "append a token of zeros"),
        ({"attention": 0.1}, "'softmax', and 0.1 is none: .* dropout=0.1; dropout=0.1 would act on"),
        ({"attention": 0.0}, "names a mechanism, such as 'softmax', and 0.0 is none: .* dropout=0.0$"),
        ({"feature": 3}, "'softmax' has no option 'feature'"),
        ({"attention": "liner"}, "did you mean 'linear'"),
        ({"num_heads": 3}, "embed_dim=8 does not divide into num_heads=3"),
        ({"num_heads": 8, "rotary": True}, "choose an even embed_dim / num_heads"),
    ],
)
def test_what_cannot_be_built_is_refused(asked, remedy):
    with pytest.raises(ValueError, match=remedy):
        MultiheadAttention(**{"embed_dim": 8, "num_heads": 2, **asked})


def test_torchs_arguments_in_torchs_places_are_refused_by_their_names():
    names = "dropout=0.0, bias=True, add_bias_kv=False, add_zero_attn=False, kdim=None"
    with pytest.raises(ValueError, match=f"give those of torch's layer by name, {names}$"):
        MultiheadAttention(8, 2, 0.0, True, False, False, None)
    with pytest.raises(ValueError, match=r"after 'linear' are given by name, .* these have none: 0.0, True"):
        MultiheadAttention(8, 2, "linear", 0.0, True)


def test_torchs_defaults_by_name_are_taken():
    names = {"add_bias_kv": False, "add_zero_attn": False, "kdim": 8, "vdim": None}
    module = MultiheadAttention(8, 2, "linear", dropout=0.0, device="cpu", dtype=torch.float64, **names)
    assert module.options == {}
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float64}


def test_forward_takes_torchs_arguments_in_torchs_places():
    theirs, x = torch_layer(), tokens()
    ours = MultiheadAttention.from_torch(theirs, causal=True)
    expected, _ = theirs(x, x, x, None, False, FUTURE, True, True)
    assert_close(ours(x, x, x, None, False, FUTURE, True, True)[0], expected)
    assert_close(ours(x, x, x, need_weights=False, average_attn_weights=False)[0], expected)
    bidirectional = layer()
    assert_close(bidirectional(x, x, x, None, False, None, True), bidirectional(x, x, x))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"kdim": 4}, "keys of kdim=4 and values of vdim=8 .*: project both to embed_dim=8 first"),
        ({"vdim": 4}, "keys of kdim=8 and values of vdim=4 .*: project both to embed_dim=8 first"),
        ({"add_bias_kv": True}, "append a learnt token to the input"),
        ({"add_zero_attn": True}, "append a token of zeros to the input"),
        ({"dropout": 0.1}, "set its dropout to 0.0"),
    ],
)
def test_torch_layers_that_mean_something_else_are_refused(given, remedy):
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, **given)
    with pytest.raises(ValueError, match=remedy):
        MultiheadAttention.from_torch(theirs)


@pytest.mark.parametrize("padded", [True, False])
def test_time_comes_first_where_torchs_layer_has_it_first(padded):
    theirs, query, memory = torch_layer(batch_first=False), tokens(length=7), tokens()
    mask = ~HOLES if padded else None
    ours = MultiheadAttention.from_torch(theirs)
    inputs = (query.transpose(0, 1), memory.transpose(0, 1), memory.transpose(0, 1) + 1)
    expected, _ = theirs(*inputs, key_padding_mask=mask, need_weights=False)
    out, _ = ours(*inputs, key_padding_mask=mask)
    assert_close(out, expected)
    alone, _ = ours(query[0], memory[0], memory[0] + 1, key_padding_mask=None if mask is None else mask[0])
    assert_close(alone, expected[:, 0])


@pytest.mark.parametrize(("attention", "causal"), FORMS)
def test_the_axes_order_changes_nothing_else(attention, causal):
    module, x = layer(attention, causal=causal), tokens()
    time_first = layer(attention, causal=causal, batch_first=False)
    turned = x.transpose(0, 1)
    expected, _ = module(x, x, x, key_padding_mask=~HOLES)
    out, _ = time_first(turned, turned, turned, key_padding_mask=~HOLES)
    assert_close(out.transpose(0, 1)[HOLES], expected[HOLES])
    if catalog()[attention].traits.state and causal:
        first, state = time_first.step(turned[:12], valid=HOLES[:, :12])
        second, _ = time_first.step(turned[12:], valid=HOLES[:, 12:], state=state)
        assert_close(torch.cat([first, second]).transpose(0, 1)[HOLES], expected[HOLES])


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_layer_of_other_axes_is_refused_where_it_would_take_torchs_place(batch_first):
    parent = nn.TransformerEncoderLayer(8, 2, batch_first=batch_first)
    before, other = parent.self_attn, MultiheadAttention(8, 2, batch_first=not batch_first)
    with pytest.raises(ValueError, match=f"build it with batch_first={batch_first}, or call subquad.replace"):
        parent.self_attn = other  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"TransformerEncoderLayer.self_attn takes \("):
        parent.register_module("self_attn", other)
    assert parent.self_attn is before
    parent.register_module("self_attn", MultiheadAttention(8, 2, batch_first=batch_first))


@pytest.mark.parametrize("built", [{"causal": True}, {"rotary": True}])
def test_attention_within_one_sequence_refuses_a_second(built):
    module = layer(**built)
    with pytest.raises(ValueError, match="within one sequence: pass one tensor"):
        module(tokens(), tokens(seed=2), tokens(seed=2))


@pytest.mark.parametrize("attention", [name for name, cls in catalog().items() if not cls.traits.cross])
def test_a_mechanism_without_cross_attention_refuses_it(attention):
    module = layer(attention, causal=not catalog()[attention].traits.bidirectional)
    with pytest.raises(ValueError, match="has no cross-attention: pass one tensor"):
        module(tokens(), tokens(seed=2), tokens(seed=2))


UNTURNED = {"transformer-xl", "compressive", "infinity", "infinity-gpt2", "nsa", "reformer"}


@pytest.mark.parametrize("attention", sorted(UNTURNED))
def test_rotary_positions_are_refused_where_queries_or_keys_meet_what_does_not_turn(attention):
    message = f"queries or keys of '{attention}' against what does not turn: choose other positions"
    with pytest.raises(ValueError, match=message):
        layer(attention, causal=True, rotary=True)


@pytest.mark.parametrize(("attention", "causal"), [form for form in FORMS if form[0] not in UNTURNED])
def test_rotary_positions_tell_tokens_apart_wherever_queries_and_keys_meet_one_another(attention, causal):
    turned, plain = (layer(attention, causal=causal, rotary=rotary) for rotary in (True, False))
    x = tokens()
    assert not torch.allclose(turned(x, x, x)[0], plain(x, x, x)[0])


@pytest.mark.parametrize(("attention", "causal"), [("forgetting", True), ("longformer", False)])
def test_rotary_positions_are_of_differences_whatever_inputs_there_are(attention, causal):
    module = layer(attention, causal=causal, rotary=True)
    x, later = tokens(), torch.arange(LENGTH)[None] + 100
    sequence = Sequence(x, None, torch.arange(LENGTH)[None])
    assert_close(module.attend(sequence._replace(positions=later)), module.attend(sequence))


@pytest.mark.parametrize(
    ("attention", "rotary"),
    [(name, False) for name in STREAMING] + [(name, True) for name in STREAMING if name not in UNTURNED],
)
@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
def test_a_stream_equals_the_sequence_whatever_the_padding(attention, sizes, rotary):
    module, x = layer(attention, causal=True, rotary=rotary), tokens()
    expected, _ = module(x, x, x, key_padding_mask=~HOLES)
    state, outputs = None, []
    for part, valid in zip(x.split(sizes, 1), HOLES.split(sizes, 1), strict=True):
        out, state = module.step(part, valid=valid, state=state)
        outputs.append(out)
    assert_close(torch.cat(outputs, 1)[HOLES], expected[HOLES])


def test_a_bidirectional_layer_does_not_stream():
    with pytest.raises(ValueError, match="build it with causal=True"):
        layer().step(tokens())


class Peeking(SoftmaxAttention):
    """Softmax that claims to be causal in its values only."""

    traits = replace(SoftmaxAttention.traits, causal="values")


def test_a_choice_of_keys_that_sees_the_future_is_refused_unless_accepted(monkeypatch):
    monkeypatch.setattr(
        "subquad.nn.multihead.build", lambda name, dims, *, causal: Peeking(dims, causal=causal)
    )
    with pytest.raises(ValueError, match='accept this one with causal="values"'):
        MultiheadAttention(8, 2, "peeking", causal=True)
    assert MultiheadAttention(8, 2, "peeking", causal="values").mechanism.causal
    assert not MultiheadAttention(8, 2, "peeking").mechanism.causal
