"""A model of torch's with its attention replaced: what is carried over, what is shared, what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from subquad import MultiheadAttention, replace_attention
from subquad.registry import catalog

LENGTH = 24
PADDING = torch.tensor([[False] * LENGTH, [False] * 17 + [True] * 7])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),  # torch's encoder makes them
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),  # and says when it does not
]


def encoder(*, batch_first: bool = True, depth: int = 2, **chosen) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first, **chosen)
    model = nn.TransformerEncoder(layer, depth)
    for parameter in model.parameters():  # torch's copies of a layer are equal until they are trained
        nn.init.normal_(parameter, std=0.3)
    return model


def decoder(*, batch_first: bool = True) -> nn.TransformerDecoder:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    return nn.TransformerDecoder(layer, 2)


def tokens(length: int = LENGTH, *, batch_first: bool = True) -> torch.Tensor:
    x = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(1))
    return x if batch_first else x.transpose(0, 1)


def replaced(model: nn.Module) -> list[MultiheadAttention]:
    return [module for module in model.modules() if isinstance(module, MultiheadAttention)]


def real(out: torch.Tensor, *, batch_first: bool) -> torch.Tensor:
    return (out if batch_first else out.transpose(0, 1))[~PADDING]


class Pair(nn.Module):
    """Two names for what may be one layer."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_with_softmax_gives_what_torchs_gives(batch_first, training, norm_first):
    theirs = encoder(batch_first=batch_first, norm_first=norm_first).train(training)
    ours = replace_attention(copy.deepcopy(theirs))
    x = tokens(batch_first=batch_first)
    with torch.set_grad_enabled(training):
        out, expected = (model(x, src_key_padding_mask=PADDING) for model in (ours, theirs))
    assert_close(real(out, batch_first=batch_first), real(expected, batch_first=batch_first))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_whole_transformer_gives_what_torchs_gives(batch_first):
    torch.manual_seed(0)
    theirs = nn.Transformer(8, 2, 2, 2, 16, dropout=0.0, batch_first=batch_first).eval()
    ours = copy.deepcopy(theirs)
    replace_attention(ours, only="encoder.*")
    replace_attention(ours, only="decoder.*.self_attn", causal=True)
    replace_attention(ours, only="*.multihead_attn")
    source, target = tokens(17, batch_first=batch_first), tokens(batch_first=batch_first)
    out, expected = (
        model(
            source,
            target,
            tgt_mask=CAUSAL,
            src_key_padding_mask=PADDING[:, :17],
            memory_key_padding_mask=PADDING[:, :17],
        )
        for model in (ours, theirs)
    )
    assert_close(out, expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_torchs_fast_paths_do_not_pass_by_the_mechanism(batch_first, padding):
    model = replace_attention(encoder(batch_first=batch_first), "linear")
    x = tokens(batch_first=batch_first)
    expected = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        out = model.eval()(x, src_key_padding_mask=padding)
    assert_close(real(out, batch_first=batch_first), real(expected, batch_first=batch_first))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_causal_mask_needs_a_causal_mechanism(batch_first):
    x, theirs = tokens(batch_first=batch_first), encoder(batch_first=batch_first)
    ours = replace_attention(copy.deepcopy(theirs), causal=True)
    assert_close(ours(x, mask=CAUSAL, is_causal=True), theirs(x, mask=CAUSAL, is_causal=True))
    with pytest.raises(ValueError, match="for is_causal=True build it with causal=True"):
        replace_attention(theirs)(x, mask=CAUSAL, is_causal=True)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_batch_row_does_not_see_another(batch_first):
    model = replace_attention(encoder(batch_first=batch_first), "performer").eval()
    x = tokens().requires_grad_()
    out = model(x if batch_first else x.transpose(0, 1))
    out.select(0 if batch_first else 1, 0).sum().backward()
    assert x.grad is not None
    assert x.grad[0].any()
    assert not x.grad[1].any()


def test_the_model_itself_comes_back_with_its_mode_devices_and_types():
    model = encoder().to(torch.bfloat16)
    model.layers[0].eval()
    model.layers[1].to("meta")
    assert replace_attention(model, "performer") is model
    first, second = replaced(model)
    assert not first.training
    assert not first.mechanism.training
    assert second.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {t.device.type for t in second.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("attention", "causal"),
    [(name, not cls.traits.bidirectional) for name, cls in catalog().items() if name != "reformer"],
)
def test_parameters_stay_those_that_an_optimiser_holds_but_where_there_are_more_inputs(attention, causal):
    model = encoder(depth=1)
    model.layers[0].requires_grad_(False)
    before = dict(model.named_parameters())
    options = dict(catalog()[attention].traits.tiny)
    replace_attention(model, attention, causal=causal, max_len=LENGTH, **options)
    (ours,) = replaced(model)
    assert ours.out_proj.weight is before["layers.0.self_attn.out_proj.weight"]
    assert not ours.in_proj_weight.requires_grad
    weight = before["layers.0.self_attn.in_proj_weight"]
    if list(ours.widths) == list("qkv"):
        assert ours.in_proj_weight is weight
    else:
        assert_close(ours.in_proj_weight[: len(weight)], weight)


def test_copies_of_a_layer_draw_directions_of_their_own():
    model = encoder(depth=3)
    first, second, third = replaced(replace_attention(model, "performer", only="layers.*"))
    assert [layer.layer for layer in (first, second, third)] == [0, 1, 2]
    draws = [next(iter(layer.mechanism.buffers())) for layer in (first, second, third)]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])


def test_a_layer_in_two_places_is_replaced_once_and_stays_one():
    theirs = nn.MultiheadAttention(8, 2)
    pair = Pair(theirs, theirs)
    model = nn.ModuleList([pair, nn.MultiheadAttention(8, 2), nn.Sequential(theirs)])
    first, second = replaced(replace_attention(model, "linear"))
    assert pair.first is pair.second is model.get_submodule("2.0") is first
    assert (first.layer, second.layer) == (0, 1)


def test_tied_weights_stay_tied_or_are_refused():
    model = Pair(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2))
    model.second.in_proj_weight = model.first.in_proj_weight
    with pytest.raises(ValueError, match=r"first, second: it shares weights .*: untie the weights"):
        replace_attention(model, "gated-linear", causal=True)
    first, second = replaced(replace_attention(model, "linear"))
    assert first is not second
    assert first.in_proj_weight is second.in_proj_weight


def test_weights_that_a_mechanism_shares_between_layers_are_shared():
    options = {"rank": 4, "sharing": "layers", "max_len": LENGTH}
    first, second = replaced(replace_attention(encoder(), "linformer", **options))
    assert first.mechanism.E is second.mechanism.E


def test_only_layers_that_the_pattern_fits_are_replaced():
    model = nn.ModuleDict({"encoder": encoder(), "decoder": decoder()})
    replace_attention(model, only="decoder.*.multihead_attn")
    names = [name for name, module in model.named_modules() if isinstance(module, MultiheadAttention)]
    assert names == ["decoder.layers.0.multihead_attn", "decoder.layers.1.multihead_attn"]
    with pytest.raises(ValueError, match=r"only='encode' fits no .*; there are encoder.layers.0.self_attn, "):
        replace_attention(model, only="encode")


@pytest.mark.parametrize(
    ("built", "remedy"),
    [
        ({"dropout": 0.1}, r"dropout=0.1\): set its dropout to 0.0"),
        ({"kdim": 4}, "project both to embed_dim=8"),
        ({"vdim": 4}, "project both to embed_dim=8"),
        ({"add_bias_kv": True}, "append a learnt token"),
        ({"add_zero_attn": True}, "append a token of zeros"),
        ({"embed_dim": 6, "num_heads": 2}, "choose an even embed_dim / num_heads"),
    ],
)
def test_all_problems_are_reported_at_once_and_nothing_is_changed(built, remedy):
    odd = nn.MultiheadAttention(**{"embed_dim": 8, "num_heads": 2, **built})
    model = nn.ModuleDict({"good": nn.MultiheadAttention(8, 2), "odd": odd, "far": Pair(odd, copy.copy(odd))})
    before = list(model.modules())
    with pytest.raises(ValueError, match=f"nothing was replaced, .*\n  odd, far.second: .*{remedy}"):
        replace_attention(model, rotary=True)
    assert list(model.modules()) == before


@pytest.mark.parametrize(
    ("alter", "remedy"),
    [
        (
            lambda layer: layer.register_forward_hook(lambda *_: None),
            "MultiheadAttention has hooks",
        ),
        (lambda layer: prune.l1_unstructured(layer, "in_proj_weight", 0.5), "has hooks"),
        (lambda layer: prune.l1_unstructured(layer.out_proj, "weight", 0.5), "Linear has hooks"),
        (
            lambda layer: parametrizations.weight_norm(layer, "in_proj_weight"),
            "a Parametrized.* may do",
        ),
    ],
    ids=["hook", "pruned", "pruned output", "parametrised"],
)
def test_what_was_added_to_torchs_layer_is_not_lost_without_a_word(alter, remedy):
    model = encoder(depth=1)
    alter(model.layers[0].self_attn)
    with pytest.raises(ValueError, match=f"layers.0.self_attn: .*{remedy}"):
        replace_attention(model)


@pytest.mark.parametrize(
    ("attention", "chosen"), [("local", {}), ("linear", {"causal": True}), ("softmax", {"rotary": True})]
)
def test_a_decoders_cross_attention_is_refused_to_what_cannot_do_it(attention, chosen):
    model = decoder()
    with pytest.raises(ValueError, match=r"layers.1.multihead_attn: it attends .*only=.\*.self_attn"):
        replace_attention(model, attention, **chosen)
    assert not replaced(model)
    replace_attention(model, attention, only="*.self_attn", **chosen)
    replace_attention(model, "linear", only="*.multihead_attn")
    assert len(replaced(model)) == 4


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (nn.Linear(8, 8), "Linear holds no torch.nn.MultiheadAttention to replace"),
        (nn.MultiheadAttention(8, 2), "use subquad.MultiheadAttention.from_torch"),
    ],
)
def test_a_model_without_attention_in_it_is_refused(model, remedy):
    with pytest.raises(ValueError, match=remedy):
        replace_attention(model)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"layer": 3}, "layers are numbered in the order of their names: leave layer out"),
        ({"batch_first": True}, "batch_first is carried over from torch's layer: leave it out"),
        ({"dtype": torch.float64}, "dtype is carried over from torch's layer: leave it out"),
        ({"dropout": 0.1}, "dropout=0.1 would act on attention weights"),
    ],
)
def test_what_is_carried_over_cannot_be_an_option(given, remedy):
    with pytest.raises(ValueError, match=remedy):
        replace_attention(encoder(), **given)


def test_what_the_mechanism_refuses_is_reported_with_its_layers():
    with pytest.raises(ValueError, match=r"0.self_attn, layers.1.self_attn: 'performer' has no option"):
        replace_attention(encoder(), "performer", feature=8)
    with pytest.raises(ValueError, match=r"'reformer' projects to .*: build a layer anew"):
        replace_attention(encoder(), "reformer")
