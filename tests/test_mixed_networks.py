"""Networks whose layers differ: how they are written, and that they do all that others do."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad import replace_attention
from subquad.cli.check import named
from subquad.experiments.rows import rows
from subquad.experiments.spec import MechanismSpec
from subquad.fields import Events, Readout
from subquad.measure.cost import cost
from subquad.measure.stream import stream_cost
from subquad.mechanism import Dims, Traits
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.export import read, save
from subquad.nn.layers.named import every_option, layer_by_layer, traits_of
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.notation import bare, several
from subquad.registry import network

HYBRID = "local:width=3*3+softmax"
MEMBERS = ["local:width=3&taylor:width=3"] * 2 + ["softmax&gated-delta"]
NESTED = "(local:width=3&taylor:width=3)*2+softmax&gated-delta"
DIMS = Dims(heads=2, head_dim=8, max_len=24)


def encoder(
    attention, *, depth: int, causal: bool = True, positions: str = "sinusoidal", **options
) -> Encoder:
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": depth, "heads": 2, "max_len": 24}
    config = EncoderConfig(**sizes, attention=attention, causal=causal, positions=positions, options=options)
    return Encoder(config).double()


def tokens(length: int = 24) -> torch.Tensor:
    return torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def texts(attention: str, depth: int) -> list[str]:
    return [name for name, _ in layer_by_layer(attention, depth=depth)]


def test_layers_go_round_over_the_members():
    assert texts("local*3+softmax", 8) == [*["local"] * 3, "softmax"] * 2
    assert layer_by_layer(HYBRID, depth=4)[2:] == [("local", {"width": 3}), ("softmax", {})]
    model = encoder(NESTED, depth=6)
    assert [type(mechanism).__name__ for mechanism in model.mechanisms()] == ["Mixture"] * 6
    assert [len(mechanism.projections()) for mechanism in model.mechanisms()] == [3, 3, 6] * 2


def test_a_depth_that_leaves_a_rest_is_refused():
    with pytest.raises(
        ValueError, match="is a network of 4 layers, and 6 are asked for: take a depth of 4, 8"
    ):
        encoder(HYBRID, depth=6)


def test_a_list_and_a_text_are_one_config():
    listed = EncoderConfig(attention=["local:width=3", "local:width=3&taylor", "softmax"], depth=3)
    assert listed.attention == "local:width=3+(local:width=3&taylor)+softmax"
    assert listed == EncoderConfig(attention="local:width=3+(local:width=3&taylor)+softmax", depth=3)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="a list names the mechanism of each layer, and this one is empty"):
        EncoderConfig(attention=[])


def test_options_beside_members_are_refused():
    with pytest.raises(ValueError, match="has its options within it, and width beside it"):
        encoder("local+softmax", depth=2, width=3)


@pytest.mark.parametrize("name", ["softmax", "local", "linformer", "gated-delta"])
def test_members_that_are_all_alike_are_a_network_of_that_mechanism(name):
    causal = name != "linformer"
    one, mixed = encoder(name, depth=2, causal=causal), encoder([name, name], depth=2, causal=causal)
    assert_close(mixed.state_dict(), one.state_dict(), rtol=0, atol=0)
    assert_close(mixed(tokens()), one(tokens()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("attention", "depth", "positions"),
    [(HYBRID, 4, "sinusoidal"), (NESTED, 3, "sinusoidal"), ("forgetting&ssd+gated-delta", 2, "rotary")],
)
def test_a_mixed_network_streams(attention, depth, positions):
    model, x, state, outputs = encoder(attention, depth=depth, positions=positions), tokens(), None, []
    for part in x.split((5, 0, 1, 18), 1):
        out, state = model.step(part, state=state)
        outputs.append(out)
    assert_close(torch.cat(outputs, 1), model(x))


@torch.no_grad()
def test_a_mixed_network_streams_in_place_and_resets_rows():
    model, x = encoder(NESTED, depth=3), tokens()
    state = model.reserve(model.step(x[:, :0])[1], 24)
    outputs = [model.step(part, state=state, in_place=True)[0] for part in x.split(8, 1)]
    assert_close(torch.cat(outputs, 1), model(x))
    _, state = model.step(x[:, :9])
    state = model.reset_rows(state, torch.tensor([True, False]))
    out, _ = model.step(x[:, 9:12], state=state)
    assert_close(out[0], model(x[:1, 9:12])[0])
    assert_close(out[1], model(x[1:, :12])[0, 9:])


def test_weights_are_shared_among_layers_of_one_mechanism_alone():
    shared = "linformer:rank=4,sharing=layers"
    model = encoder(f"{shared}+linformer:rank=5,sharing=layers+softmax+{shared}", depth=4, causal=False)
    first, second, _, last = model.mechanisms()
    assert first.E is last.E
    assert first.E is not second.E


def test_a_mixed_model_is_saved_and_read(tmp_path):
    config = SequenceModelConfig(
        fields=Events(vocabularies=(4,), numeric=0),
        readout=Readout(outputs=3),
        encoder=EncoderConfig(dim=8, depth=3, heads=2, attention=MEMBERS, causal=True, max_len=12),
    )
    model = SequenceModel(config).eval()
    save(model, tmp_path, extra={})
    loaded, _ = read(tmp_path)
    ids = torch.randint(4, (2, 7, 1)), torch.zeros(2, 7, 0)
    assert loaded.config == config
    assert_close(loaded(ids, None), model(ids, None), rtol=0, atol=0)
    assert model.parameters_by_part()["attention"] > 0


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
def test_layers_of_torch_are_replaced_one_by_one():
    layer = nn.TransformerEncoderLayer(16, 2, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    replace_attention(model, "local:width=3&linear+softmax", causal=True)
    assert [x.attention for x in model.modules() if isinstance(x, MultiheadAttention)] == [
        "local:width=3&linear",
        "softmax",
    ] * 2
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(ValueError, match="has its options within it"):
        replace_attention(model, "local+softmax", width=3)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("local:width=64+local:width=64+softmax", "local:width=64*2+softmax"),
        ("local+softmax+local+softmax", "local+softmax"),
        ("softmax*3", "softmax"),
        ("(taylor&local:width=64)*2", "taylor&local:width=64"),
        ("(local*2&taylor*2)*2 + softmax:", "(local&taylor)*2+softmax"),
        ("performer:seed=0*2+linear", "performer*2+linear"),
        ('pattern:expr="Local(2) | Global(1)"+linear', 'pattern:expr="Local(2) | Global(1)"+linear'),
    ],
)
def test_one_network_has_one_label_however_it_is_typed(text, label):
    if text.endswith(":"):
        with pytest.raises(ValueError, match="is not of the form NAME:option=value"):
            rows([text], DIMS)
        text = text[:-1]
    (row,) = rows([text], DIMS)
    assert row.label == label
    assert rows([label], DIMS) == (row,)


def test_a_pattern_without_quotes_mixes_nothing():
    (row,) = rows(["pattern:expr=Local(2) & CAUSAL"], DIMS)
    assert row == MechanismSpec(attention="pattern", options={"expr": "Local(2) & CAUSAL"})


def test_members_are_swept_and_listed_as_rows_are():
    chosen = rows(["local:width=3|5*3+softmax,linear&local:width=2,dilation=2"], DIMS)
    assert [row.label for row in chosen] == [
        "local:width=3*3+softmax",
        "local:width=5*3+softmax",
        "linear&local:width=2,dilation=2",
    ]
    assert several("local:width=3,dilation=2*3+softmax,linear")[1:] == ["linear"]


def test_each_layer_of_a_network_is_certified_once():
    titles = [name for name, _ in named("local*3+(local:width=8&softmax)*2+local+linear")]
    assert titles == [
        "subquad.mechanisms.local:LocalAttention (local)",
        "subquad.mixture:Mixture (local:width=8,dilation=2&softmax)",
        "subquad.mechanisms.linear:LinearAttention (linear)",
    ]
    ((title, _),) = named("local:width=8")
    assert title == "subquad.mixture:Mixture (local:width=8,dilation=2)"


def test_a_row_says_every_option_of_its_members():
    assert every_option("dpfp", {"nu": 2}) == {"nu": 2}
    chosen = every_option("local:width=3*3+(softmax&dpfp)")
    assert chosen == {"local 1.width": 3, "local 1.dilation": 1, "dpfp 3.nu": 1}
    assert bare("local:width=3*3+(softmax&dpfp:nu=2)") == "local*3+(softmax&dpfp)"


def test_a_network_claims_what_all_its_layers_claim():
    claimed = traits_of("local*3+softmax")
    assert isinstance(claimed, Traits)
    assert (claimed.state, claimed.cost, claimed.cross) == ("growing", 2.0, False)
    assert traits_of("local+transformer-xl").bidirectional is False
    assert rows(["local+transformer-xl"], DIMS)[0].causal
    with pytest.raises(ValueError, match="'transformer-xl' is causal alone and 'bigbird'"):
        rows(["transformer-xl+bigbird"], DIMS)
    assert network("softmax")[0].attention == "softmax"


def test_the_cost_of_a_network_is_the_mean_of_its_layers():
    setting = {"options": {}, "length": 64, "heads": 2, "head_dim": 8, "batch": 1, "seconds": 0.0}
    names = ("linear", "softmax", "linear*3+softmax")
    linear, softmax, mixed = (stream_cost(attention=name, **setting)["state"]["mb"] for name in names)
    assert mixed == pytest.approx((3 * linear + softmax) / 4)
    measured = cost(attention="linear*3+softmax", causal=False, backward=False, **setting)
    assert 0 < measured["forward"]["ms"]["low"] <= measured["forward"]["ms"]["median"]
