"""Inside torch's own encoders the layer is really called, in train and in eval mode."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.nn.multihead import MultiheadAttention

LENGTH = 24
PADDING = torch.tensor([[False] * 24, [False] * 17 + [True] * 7])
LEFT = PADDING.flip(1)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors",  # torch's encoder makes them by itself in eval mode
)


def torch_layer(**chosen) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **chosen)


def swap(layer: nn.Module, attention: str = "softmax", *, causal: bool = False) -> None:
    theirs = layer.get_submodule("self_attn")
    assert isinstance(theirs, nn.MultiheadAttention)
    layer.register_module("self_attn", MultiheadAttention.from_torch(theirs, attention, causal=causal))


def swapped(encoder: nn.TransformerEncoder, attention: str, *, causal: bool = False) -> nn.TransformerEncoder:
    encoder = copy.deepcopy(encoder)
    for block in encoder.layers:
        swap(block, attention, causal=causal)
    return encoder


def tokens() -> torch.Tensor:
    return torch.randn(2, LENGTH, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING, LEFT], ids=["whole", "right", "left"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_softmax_in_torchs_layer_equals_torchs_layer(norm_first, padding, training, grad):
    theirs = torch_layer(norm_first=norm_first).train(training)
    ours = copy.deepcopy(theirs)
    swap(ours)
    real = ~padding if padding is not None else torch.ones(2, LENGTH, dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        out, expected = (module(tokens(), src_key_padding_mask=padding) for module in (ours, theirs))
    assert_close(out[real], expected[real])


@pytest.mark.parametrize("padding", [None, PADDING, LEFT], ids=["whole", "right", "left"])
@pytest.mark.parametrize("swap_first", [True, False])
def test_torchs_encoder_gives_the_same_in_eval_as_in_training(padding, swap_first):
    layer = torch_layer()
    if swap_first:
        swap(layer, "linear")
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    else:
        encoder = swapped(nn.TransformerEncoder(layer, 2), "linear")
    real = ~padding if padding is not None else torch.ones(2, LENGTH, dtype=torch.bool)
    expected = encoder.train()(tokens(), src_key_padding_mask=padding)
    with torch.no_grad():
        out = encoder.eval()(tokens(), src_key_padding_mask=padding)
    assert_close(out[real], expected[real])


@pytest.mark.parametrize("padding", [None, PADDING, LEFT], ids=["whole", "right", "left"])
def test_torchs_fused_layer_never_takes_our_place(padding):
    encoder = swapped(nn.TransformerEncoder(torch_layer(), 2), "linear").eval()
    calls = []
    for layer in encoder.layers:
        mechanism = layer.get_submodule("self_attn.mechanism")
        forward = mechanism.forward  # no hook: a hook alone would keep torch from its fused layer
        mechanism.forward = lambda *q, forward=forward, **kv: calls.append(1) or forward(*q, **kv)
    with torch.no_grad():
        encoder(tokens(), src_key_padding_mask=padding)
    assert len(calls) == 2


def test_linear_attention_in_torchs_encoder_is_not_softmax():
    theirs = nn.TransformerEncoder(torch_layer(), 2).eval()
    with torch.no_grad():
        difference = (swapped(theirs, "linear")(tokens()) - theirs(tokens())).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "padding", [None, PADDING.float().masked_fill(PADDING, -torch.inf)], ids=["whole", "right"]
)
@pytest.mark.parametrize("hint", [None, True, False])
def test_causal_softmax_in_torchs_encoder_equals_torch(training, padding, hint):
    theirs = nn.TransformerEncoder(torch_layer(), 2, enable_nested_tensor=False).train(training)
    ours = swapped(theirs, "softmax", causal=True)
    real = ~PADDING if padding is not None else torch.ones(2, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        out, expected = (
            module(tokens(), mask=CAUSAL, src_key_padding_mask=padding, is_causal=hint)
            for module in (ours, theirs)
        )
    assert_close(out[real], expected[real])


def test_torchs_encoder_with_a_causal_mask_refuses_a_bidirectional_layer():
    encoder = swapped(nn.TransformerEncoder(torch_layer(), 2, enable_nested_tensor=False), "linear")
    with pytest.raises(ValueError, match="build it with causal=True"):
        encoder(tokens(), mask=CAUSAL)


def test_an_unbatched_sequence_passes_torchs_layer():
    layer = torch_layer().eval()
    swap(layer, "linear")
    with torch.no_grad():
        expected = layer(tokens(), src_key_padding_mask=PADDING)[1, :17]
        out = layer(tokens()[1], src_key_padding_mask=PADDING[1])[:17]
    assert_close(out, expected)


def test_nested_tensors_with_a_mask_are_refused():
    layer = MultiheadAttention(8, 2)
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with pytest.raises(ValueError, match="nested tensors take no mask"):
        layer(nested, nested, nested, key_padding_mask=PADDING)


def test_softmax_in_torchs_decoder_equals_torch():
    theirs = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(theirs)
    swap(ours, causal=True)
    ours.register_module("multihead_attn", MultiheadAttention.from_torch(theirs.multihead_attn))
    memory = tokens()[:, :7]
    padding = torch.tensor([[False] * 7, [True] * 2 + [False] * 5])
    out, expected = (
        layer(tokens(), memory, tgt_mask=CAUSAL, memory_key_padding_mask=padding) for layer in (ours, theirs)
    )
    assert_close(out, expected)
