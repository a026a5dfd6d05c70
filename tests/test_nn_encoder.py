"""The encoder: whole, as a stream, and by segments with a memory."""

from typing import Any

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE, STREAMING
from torch.testing import assert_close

from subquad.mechanism import Mechanism
from subquad.nn import state as states
from subquad.nn.blocks import TransformerBlock
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.positions import KINDS
from subquad.nn.sequence import make_sequence
from subquad.registry import catalog
from subquad.testing.mechanism.cases import tensors

TURNING = ("softmax", "linear", "performer")  # what takes q, k and v alone
LENGTH = 24
HOLES = torch.tensor([[False] * 3 + [True] * 9 + [False] * 2 + [True] * 10, [True] * 20 + [False] * 4])
CHUNKS = {"whole": (24,), "tokens": (1,) * 24, "fives": (5, 5, 5, 5, 4), "uneven": (0, 2, 9, 0, 13)}


def pairs(mechanisms: list[str]) -> list[tuple[str, str]]:
    """Each of them, with positions of every kind where that says anything."""
    return [(name, kind) for name in mechanisms for kind in KINDS if kind == "sinusoidal" or name in TURNING]


def encoder(attention: str = "linear", *, causal: bool = True, **chosen) -> Encoder:
    torch.manual_seed(0)
    asked = {
        "dim": 8,
        "depth": 2,
        "heads": 2,
        "positions": "sinusoidal",
        "max_len": LENGTH,
        **chosen,
    }
    options = {**catalog()[attention].traits.tiny, **asked.pop("options", {})}
    return Encoder(EncoderConfig(attention=attention, causal=causal, options=options, **asked)).double()


def only(attention: str) -> bool:
    """The form to test where one will do."""
    return not catalog()[attention].traits.bidirectional


def tokens(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def stream(model: Encoder, x, sizes, *, valid=None) -> tuple[torch.Tensor, Any]:
    state, outputs = None, []
    for index, part in enumerate(x.split(sizes, 1)):
        seen = None if valid is None else valid.split(sizes, 1)[index]
        out, state = model.step(part, valid=seen, state=state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize(("attention", "positions"), pairs(ONE_OF_EACH_FILE))
def test_padding_anywhere_counts_as_absent(attention, positions):
    model, x = encoder(attention, causal=only(attention), positions=positions), tokens()
    dirty = x.masked_fill(~HOLES[..., None], torch.nan)
    out = model(dirty, HOLES)
    for row, real in enumerate(HOLES):
        assert_close(out[row, real], model(x[row, real][None])[0])


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_nan_at_padding_leaves_all_gradients_as_they_are(attention):
    model, gradients = encoder(attention, causal=only(attention), positions="learnt"), []
    for filler in (0.0, torch.nan):
        model.zero_grad()
        model(tokens().masked_fill(~HOLES[..., None], filler), HOLES)[HOLES].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(("attention", "positions"), pairs(STREAMING))
def test_a_stream_equals_the_sequence(attention, positions, sizes):
    model, x = encoder(attention, positions=positions), tokens()
    for valid in (None, HOLES):
        real = torch.ones_like(HOLES) if valid is None else valid
        streamed, _ = stream(model, x, sizes, valid=valid)
        assert_close(streamed[real], model(x, valid)[real])


@pytest.mark.parametrize("attention", STREAMING)
def test_a_stream_has_the_gradients_of_the_sequence(attention):
    model, gradients = encoder(attention, positions="learnt"), []
    for run in (lambda x: model(x, HOLES), lambda x: stream(model, x, (5, 5, 5, 5, 4), valid=HOLES)[0]):
        model.zero_grad()
        run(tokens())[HOLES].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("attention", "segment"),
    [*((name, 5) for name in STREAMING), *((name, size) for name in TURNING for size in (1, 24, 100))],
)
def test_segments_remember_what_came_before(attention, segment):
    model, x = encoder(attention), tokens()
    assert_close(model.segments(x, valid=HOLES, segment=segment)[HOLES], model(x, HOLES)[HOLES])


@pytest.mark.parametrize("detach", [True, False])
def test_detached_segments_keep_gradients_to_themselves(detach):
    model, x = encoder(), tokens().requires_grad_()
    model.segments(x, segment=12, detach=detach)[:, 12:].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, 12:].any()
    assert x.grad[:, :12].any() != detach


def test_a_segment_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a segment has at least 1 token, not 0"):
        encoder().segments(tokens(), segment=0)


def test_a_bidirectional_encoder_does_not_run_by_segments():
    with pytest.raises(ValueError, match="build it with causal=True"):
        encoder(causal=False).segments(tokens(), segment=5)


@pytest.mark.parametrize(("attention", "positions"), pairs(STREAMING))
def test_a_row_that_is_reset_starts_anew_and_the_others_go_on(attention, positions):
    model, x = encoder(attention, positions=positions, max_len=2 * LENGTH), tokens()
    _, state = stream(model, x, (5, 5, 5, 5, 4), valid=HOLES)
    went_on, _ = model.step(x, state=state)
    afresh, _ = model.step(x)
    out, _ = model.step(x, state=model.reset_rows(state, torch.tensor([True, False])))
    assert_close(out[0], afresh[0])
    assert_close(out[1], went_on[1])


@pytest.mark.parametrize("attention", STREAMING)
@torch.no_grad()
def test_decoding_in_place_gives_the_sequence_and_moves_no_state(attention):
    model, x = encoder(attention), tokens()
    _, state = model.step(x[:, :12], valid=HOLES[:, :12])
    state = model.reserve(state, 12)
    places, outputs = [y.data_ptr() for y in tensors(state)], []
    for n in range(12, LENGTH):
        out, state = model.step(x[:, [n]], valid=HOLES[:, [n]], state=state, in_place=True)
        outputs.append(out)
    assert [y.data_ptr() for y in tensors(state)] == places
    real = HOLES[:, 12:, None]
    assert_close(torch.cat(outputs, 1) * real, model(x, HOLES)[:, 12:] * real)


@torch.no_grad()
def test_a_layer_decodes_in_place():
    layer = MultiheadAttention(8, 2, "softmax", causal=True)
    x = tokens().float()
    _, state = layer.step(x[:, :12])
    state = layer.reserve(state, 1)
    out, after = layer.step(x[:, 12:13], state=state, in_place=True)
    assert_close(out, layer(x, x, x)[0][:, 12:13])
    assert [y.data_ptr() for y in tensors(after)] == [y.data_ptr() for y in tensors(state)]


@pytest.mark.parametrize("attention", STREAMING)
def test_rows_of_a_state_may_change_places(attention):
    model, x = encoder(attention), tokens()
    order = torch.tensor([1, 0, 1])
    _, state = stream(model, x[:, :12], (5, 7), valid=HOLES[:, :12])
    out, _ = model.step(x[order, 12:], state=states.reorder(state, order))
    expected, _ = model.step(x[:, 12:], state=state)
    assert_close(out, expected[order])


def test_a_state_of_other_rows_is_refused():
    model, tokens = encoder(), torch.randn(3, 5, 8, dtype=torch.float64)
    layer = model.get_submodule("blocks.0.attention")
    assert isinstance(layer, MultiheadAttention)
    _, state = model.step(tokens[:2])
    with pytest.raises(ValueError, match="the state has 2 rows and the input 3: choose the state's rows"):
        model.step(tokens, state=state)
    with pytest.raises(ValueError, match="the state has 2 rows and the input 3: choose the state's rows"):
        layer.step(tokens, state=layer.step(tokens[:2])[1])


@pytest.mark.parametrize("attention", STREAMING)
def test_a_detached_state_has_the_values_and_no_history(attention):
    model, x = encoder(attention), tokens()
    _, state = model.step(x[:, :12])
    expected, _ = model.step(x[:, 12:], state=state)
    out, _ = model.step(x[:, 12:], state=states.detach(state))
    assert_close(out, expected)
    before = x[:, :12].clone().requires_grad_()
    out, _ = model.step(x[:, 12:], state=states.detach(model.step(before)[1]))
    out.sum().backward()
    assert before.grad is None


@pytest.mark.parametrize(
    "attention", [name for name in STREAMING if catalog()[name].traits.state == "bounded"]
)
def test_a_bounded_state_is_as_large_after_many_tokens(attention):
    model = encoder(attention, max_len=2048)
    sizes = []
    for length in (256, 1024):
        _, state = model.step(tokens(length=length))
        sizes.append(sum(leaf.numel() for leaf in leaves(state)))
    assert sizes[0] == sizes[1]


def leaves(state):
    return [state] if isinstance(state, torch.Tensor) else [leaf for part in state for leaf in leaves(part)]


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_row_of_padding_alone_is_finite_with_finite_gradients(attention):
    model = encoder(attention, causal=only(attention), positions="learnt")
    x = torch.full((2, LENGTH, 8), torch.nan, dtype=torch.float64)
    out = model(x, torch.zeros(2, LENGTH, dtype=torch.bool))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_penalty_is_the_sum_over_layers():
    model = encoder("infinity", options={"kl_weight": 1.0})
    model(tokens())
    penalties = [part.penalty() for part in model.modules() if isinstance(part, Mechanism)]
    assert len(penalties) == 2
    assert all(penalty > 0 for penalty in penalties)
    assert_close(model.penalty(), penalties[0] + penalties[1])


def test_learnt_positions_end_where_the_config_says_in_a_stream_too():
    model = encoder(positions="learnt")
    _, state = model.step(tokens())
    with pytest.raises(ValueError, match="a sequence has 25 tokens and learnt positions end at max_len=24"):
        model.step(tokens(length=1), state=state)


def test_dropout_acts_in_training_only():
    model, x = encoder(dropout=0.5).eval(), tokens()
    expected = encoder(dropout=0.0)(x)
    assert_close(model(x), expected)
    assert (model.train()(x) - expected).abs().max() > 0.1


def test_dropout_acts_on_the_input_and_on_what_each_part_of_a_block_adds():
    model, x = encoder().train(), tokens()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 1.0
    block = model.blocks[0]
    assert isinstance(block, TransformerBlock)
    sequence, _ = make_sequence(x)
    assert_close(block(sequence).values, x)
    assert_close(block.step(sequence, None)[0].values, x)
    assert not model(x).any()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attention": "liner"}, "did you mean 'linear'"),
        ({"positions": "rope"}, "unknown positions 'rope'"),
        ({"options": {"chunks": 4}}, "'linear' has no option 'chunks'"),
        ({"positions": "rotary", "heads": 8}, "choose an even embed_dim / num_heads, or other positions"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"heads": 3}, "dim must be a multiple of heads, and 8 is none of 3"),
        ({"options": {"layer": 1}}, "'layer' is the layer's, not an option of 'linear': take it out"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        Encoder(EncoderConfig(**{"dim": 8, "depth": 1, "heads": 2, "attention": "linear", **asked}))
