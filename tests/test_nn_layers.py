"""Whole layers in an encoder, a model, a comparison; and laws of their own."""

from typing import Any, Literal

import pytest
import torch
from torch.testing import assert_close

from subquad.fields import Readout, Tokens
from subquad.mechanism import Mechanism
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.layers.layer import LayerConfig
from subquad.nn.layers.named import build_layer, layer_catalog, traits_of
from subquad.nn.layers.norms import RealBatchNorm
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.registry import catalog

LENGTH = 24
HOLES = torch.tensor([[False] * 3 + [True] * 9 + [False] * 2 + [True] * 10, [True] * 20 + [False] * 4])
LAYERS = {name: dict(cls.traits.checked[0]) for name, cls in layer_catalog().items()}


def encoder(name: str, *, depth: int = 2, options=None, **chosen) -> Encoder:
    torch.manual_seed(0)
    own = LAYERS[name] if options is None else options
    sizes = {"dim": 8, "heads": 2, "max_len": LENGTH, "positions": "sinusoidal", **chosen}
    return Encoder(EncoderConfig(attention=name, options=own, depth=depth, **sizes)).double()


def tokens(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def model(name: str, *, per: Literal["sequence", "token"] = "sequence", **chosen) -> SequenceModel:
    sizes = {"dim": 8, "heads": 2, "depth": 2, "max_len": LENGTH, **chosen}
    config = EncoderConfig(attention=name, options=LAYERS[name], **sizes)
    readout = Readout(outputs=3, per=per)
    return SequenceModel(SequenceModelConfig(fields=Tokens(vocabulary=5), readout=readout, encoder=config))


def test_no_layer_has_the_name_of_a_mechanism():
    assert not layer_catalog().keys() & catalog().keys()


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_reads_the_real_tokens_of_a_layer(name):
    made = model(name).eval()
    ids = torch.randint(5, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    out = made((ids,), HOLES)
    for row, real in enumerate(HOLES):
        assert_close(out[row], made((ids[row, real][None],), None)[0])


@pytest.mark.parametrize("name", [name for name, cls in layer_catalog().items() if not cls.keeps_length])
def test_answers_per_token_are_refused_where_tokens_are_lost(name):
    with pytest.raises(ValueError, match="answers per token: take a layer that keeps them"):
        model(name, per="token")


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_drawn_by_name(name):
    first, second = model(name), model(name)
    initialise(first, seed=3)
    initialise(second, seed=3)
    assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert first.parameters_by_part()["attention"] > 0


def test_a_layer_claims_no_more_than_the_mechanism_inside():
    assert traits_of("conformer", {"inside": "transformer-xl"}).bidirectional is False
    assert traits_of("conformer", {"inside": "linear"}).state == "bounded"
    assert traits_of("conformer", {}).state == "growing"
    assert traits_of("conformer", {"inside": "nystromformer"}).causal is None
    assert traits_of("linear", {}).state == "bounded"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"insde": "linear"}, "has no option 'insde'; did you mean 'inside'"),
        ({"inside": "liner"}, "unknown mechanism 'liner'; did you mean 'linear'"),
        ({"inside": "local:with=3"}, "'local' has no option 'with'; did you mean 'width'"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"norm": "group"}, "norm must be one of layer, batch"),
    ],
)
def test_what_a_conformer_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_layer("conformer", options, LayerConfig(dim=8, heads=2))


def test_batch_norm_has_no_causal_form():
    with pytest.raises(ValueError, match="take norm='layer'"):
        build_layer("conformer", {"norm": "batch"}, LayerConfig(dim=8, heads=2, causal=True))


def test_an_unknown_layer_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'conformer'"):
        build_layer("confomer", {}, LayerConfig(dim=8, heads=2))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_over_real_tokens_is_torchs_without_the_padding(training):
    ours, theirs = RealBatchNorm(8).double(), torch.nn.BatchNorm1d(8).double()
    for norm in (ours, theirs):
        torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    x = tokens()
    dirty = x.masked_fill(~HOLES[..., None], 1e6)
    for _ in range(2):
        ours(dirty, HOLES)
        theirs(x[HOLES])
    ours.train(training)
    theirs.train(training)
    assert_close(ours(dirty, HOLES)[HOLES], theirs(x[HOLES]))
    assert_close(ours.state_dict(), theirs.state_dict())


def test_a_batch_of_padding_teaches_batch_norm_nothing():
    norm = RealBatchNorm(8).double()
    norm(tokens(), torch.zeros_like(HOLES))
    assert_close(norm.running_mean, torch.zeros(8, dtype=torch.float64))
    assert_close(norm.running_var, torch.ones(8, dtype=torch.float64))


def test_the_mechanism_inside_is_the_networks():
    network = encoder("conformer", options={"inside": "performer:features=16"})
    mechanisms = list(network.mechanisms())
    assert [type(mechanism).__name__ for mechanism in mechanisms] == ["Performer", "Performer"]
    assert [mechanism.dims.layer for mechanism in mechanisms if isinstance(mechanism, Mechanism)] == [0, 1]


def star_by_the_paper(layer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 1, token by token, of one row; its satellites and its relay."""

    def attend(part, query, keys):
        q = part.query(query).unflatten(-1, (part.heads, -1))
        k, v = part.key_value(torch.stack(keys)).unflatten(-1, (2, part.heads, -1)).unbind(1)
        weights = ((q * k).sum(-1) / q.shape[-1] ** 0.5).softmax(0)
        return part.out((weights[..., None] * v).sum(0).flatten())

    e = list(tokens)
    h, s = e, tokens.mean(0)
    for _ in range(layer.rounds):
        contexts = [[h[i - 1], h[i], h[(i + 1) % len(h)], e[i], s] for i in range(len(h))]
        h = [
            layer.satellite_norm(attend(layer.satellites, x, c).relu())
            for x, c in zip(h, contexts, strict=True)
        ]
        s = layer.relay_norm(attend(layer.relay, s, [s, *h]).relu())
    return torch.stack(h), s


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_star_is_the_papers_algorithm(length):
    layer: Any = build_layer("star-transformer", {"rounds": 3}, LayerConfig(dim=8, heads=2)).double()
    x = tokens(length=length)
    h, s = layer.rounds_of(x, None, torch.full((2,), length))
    for row in range(2):
        satellites, relay = star_by_the_paper(layer, x[row])
        assert_close(h[row], satellites)
        assert_close(s[row, 0], relay)


@pytest.mark.parametrize("said", [{"kv_heads": 1}, {"scale": 2.0}, {"rotary": True}])
def test_what_is_said_of_attention_is_refused_where_there_is_no_mechanism(said):
    with pytest.raises(ValueError, match="has attention of its own"):
        build_layer("star-transformer", {}, LayerConfig(dim=8, heads=2, **said))


@pytest.mark.parametrize("inside", ["routing:clusters=2", "compressive", "infinity"])
def test_what_learns_beside_its_gradients_is_not_reversible(inside):
    with pytest.raises(ValueError, match="learns from tokens beside its gradients"):
        build_layer("reversible", {"inside": inside}, LayerConfig(dim=8, heads=2, causal=True))


def test_a_reversible_block_begins_with_the_weights_of_a_plain_one():
    plain, reversible = (
        Encoder(EncoderConfig(attention=name, dim=8, heads=2, depth=2)) for name in ("softmax", "reversible")
    )
    for each in (plain, reversible):
        initialise(each, seed=3)
    assert_close(reversible.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_second_derivatives_of_a_reversible_block_are_refused():
    x = tokens().requires_grad_()
    out = encoder("reversible", options={})(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
