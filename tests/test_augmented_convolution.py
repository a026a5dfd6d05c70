"""Attention-augmented convolution: what the paper's formulas give, and what it refuses."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.layers.layer import LayerConfig
from subquad.nn.layers.named import build_layer
from subquad.nn.redraw import redraw
from subquad.nn.sequence import make_sequence

NAME = "augmented-convolution"
HEIGHT, WIDTH, DIM, HEADS = 5, 4, 12, 2
HOLES = torch.tensor([[True, False, True] * 6 + [True, True], [False] * 3 + [True] * 17])


def layer(*, config: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    said: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "share": 0.5, "key_dim": 3, **options}
    sizes: dict[str, Any] = {"dim": DIM, "heads": HEADS, **(config or {})}
    return build_layer(NAME, said, LayerConfig(**sizes)).double().eval()


def tokens(*, batch: int = 2, length: int = HEIGHT * WIDTH) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention_by_the_paper(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """Section 3.1, query by query and key by key, of the places of one picture."""
    d, e = attention.key_dim, attention.value_dim
    projected = attention.query_key_value(x).split([HEADS * d, HEADS * d, HEADS * e], -1)
    q, k, v = (each.unflatten(-1, (HEADS, -1)) for each in projected)
    out = torch.zeros(len(x), HEADS, e, dtype=x.dtype)
    for head in range(HEADS):
        for i in range(len(x)):
            logits = []
            for j in range(len(x)):
                across, down = j % WIDTH - i % WIDTH, j // WIDTH - i // WIDTH
                relative = attention.columns[across + WIDTH - 1] + attention.rows[down + HEIGHT - 1]
                logits.append(q[i, head] @ (k[j, head] + relative) / d**0.5)
            out[i, head] = torch.stack(logits).softmax(0) @ v[:, head]
    return attention.out(out.flatten(1))


@pytest.mark.parametrize("length", [1, WIDTH, WIDTH + 1, HEIGHT * WIDTH])
def test_attention_is_the_papers_formula(length):
    made, x = layer().attention, tokens(length=length)
    out = made(make_sequence(x)[0])
    for row in range(2):
        assert_close(out[row], attention_by_the_paper(made, x[row]))


def test_places_count_real_tokens():
    made, x = layer().attention, tokens()
    out = made(make_sequence(x, valid=HOLES)[0])
    for row, real in enumerate(HOLES):
        assert_close(out[row][real], attention_by_the_paper(made, x[row][real]))


@pytest.mark.parametrize("inside", ["local:width=20", "informer:factor=20", "pattern:expr=Local(20)"])
def test_a_mechanism_inside_at_its_limit_is_softmax(inside):
    sequence, _ = make_sequence(tokens(), valid=HOLES)
    other, softmax = layer(inside=inside), layer()
    other.load_state_dict(softmax.state_dict(), strict=False)  # but for what mechanisms draw
    assert_close(other(sequence).values[HOLES], softmax(sequence).values[HOLES])


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_convolution_is_that_of_the_whole_picture(kernel):
    made, x = layer(kernel=kernel), tokens()
    picture = x.unflatten(1, (HEIGHT, WIDTH)).movedim(-1, 1)
    expected = F.conv2d(picture, made.convolution.weight, made.convolution.bias, padding=kernel // 2)
    assert_close(made.convolved(x, None), expected.movedim(1, -1).flatten(1, 2))


@pytest.mark.parametrize("length", [1, WIDTH - 1, WIDTH + 1])
def test_absent_places_are_zeros_to_the_convolution(length):
    made, x = layer(), tokens()
    whole = x.clone()
    whole[:, length:] = 0
    assert_close(made.convolved(x[:, :length], None), made.convolved(whole, None)[:, :length])


def test_so_many_channels_as_said_are_attentions():
    made = layer(share=0.3)  # 1.8 of 6 channels a head
    assert (made.attention.value_dim, made.convolution.out_channels) == (2, DIM - HEADS * 2)


def test_values_may_be_wider_than_queries_and_grid():
    made = layer(height=1, width=2, share=0.9, config={"heads": 1, "dim": 40}, key_dim=1)
    x = torch.randn(2, 2, 40, dtype=torch.float64)
    assert made(make_sequence(x)[0]).values.isfinite().all()
    assert made.attention.value_dim > 1 + 1 + 2


def test_batch_norm_is_over_real_tokens():
    made = layer(norm="batch").train()
    dirty = tokens().masked_fill(~HOLES[..., None], 1e6)
    clean, _ = make_sequence(tokens(), valid=HOLES)
    out = made(make_sequence(dirty, valid=HOLES)[0])
    assert_close(out.values[HOLES], made(clean).values[HOLES])


def test_padding_may_be_longer_than_the_grid_and_tokens_not():
    made, x = layer(), tokens(length=HEIGHT * WIDTH + 4)
    valid = torch.ones(2, x.shape[1], dtype=torch.bool)
    valid[:, 3:7] = False
    assert made(make_sequence(x, valid=valid)[0]).values[valid].isfinite().all()
    with pytest.raises(ValueError, match="a grid of 20 places, and a row of 24 tokens: give the layer"):
        made(make_sequence(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inside": "linear"}, "'linear' does not weigh keys by scores q . k alone"),
        ({"inside": "longformer"}, "'longformer' does not weigh keys by scores"),
        ({"inside": "sinks"}, "'sinks' has no bidirectional form"),
        ({"inside": "lokal"}, "unknown mechanism 'lokal'; did you mean 'local'"),
        ({"kernel": 2}, "kernel must be odd"),
        ({"share": 1.0}, "share must be between 0 and 1, both excluded"),
        ({"share": 0.99}, "leaves none to the convolution"),
        ({"height": 0}, "height must be at least 1"),
        ({"norm": "group"}, "norm must be one of layer, batch"),
        ({"config": {"max_len": 21}}, "has 20 places, and sequences have up to 21 tokens: give the layer"),
        ({"config": {"causal": True}}, "has no causal form"),
        ({"config": {"rotary": True}}, "has attention of its own"),
        ({"config": {"kv_heads": 1}}, "has attention of its own, without kv_heads"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_it_has_no_stream():
    with pytest.raises(ValueError, match="cannot stream"):
        layer().step(make_sequence(tokens())[0], None)


def test_what_is_random_inside_is_drawn_by_name_and_anew():
    def drawn(*, steps: int) -> torch.Tensor:
        torch.manual_seed(steps)
        options = {"height": HEIGHT, "width": WIDTH, "inside": "performer:features=16,redraw_every=2"}
        network = Encoder(EncoderConfig(attention=NAME, options=options, dim=DIM, heads=HEADS, depth=1))
        initialise(network, seed=3)
        assert redraw(network, step=steps, seed=3) == bool(steps)
        (mechanism,) = network.mechanisms()
        return torch.cat([buffer.flatten() for buffer in mechanism.buffers()])

    assert_close(drawn(steps=0), drawn(steps=0), rtol=0, atol=0)
    assert not torch.equal(drawn(steps=2), drawn(steps=0))
