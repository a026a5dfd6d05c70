"""Weights that all layers of a network share are one tensor, and stay one whatever is done to the network."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from subquad import checkpoint
from subquad.fields import Events, Readout
from subquad.nn.encoder import EncoderConfig
from subquad.nn.export import read, save
from subquad.nn.initialise import initialise
from subquad.nn.model import SequenceModel, SequenceModelConfig

IDS = torch.randint(4, (2, 7, 1), generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))


def classifier(*, sharing="layers", projection="linear", depth=3, max_len=12) -> SequenceModel:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        dim=8,
        depth=depth,
        heads=2,
        attention="linformer",
        options={"rank": 4, "sharing": sharing, "projection": projection},
        max_len=max_len,
        positions="none",
    )
    return SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=(4,), numeric=2), readout=Readout(outputs=3), encoder=encoder
        )
    )


def projections(model):
    return [dict(block.named_parameters())["attention.mechanism.E"] for block in model.encoder.blocks]


def tied(model):
    return all(E is projections(model)[0] for E in projections(model))


def loss(model):
    return model((IDS, NUMBERS), None).square().sum()


def trained(model):
    """One step of training, which must move the layers together."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss(model).backward()
    optimiser.step()
    return model


def test_layers_share_only_where_asked_to():
    assert tied(classifier())
    assert tied(classifier(projection="convolution"))
    assert not tied(classifier(sharing="key-value"))


def loaded(model, **how):
    model.load_state_dict(classifier().state_dict(), **how)
    return model


CHANGES = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "converted": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "trained": trained,
    "initialised": lambda model: initialise(model, seed=3) or model,
    "built on no device and loaded": lambda model: loaded(model.to("meta").to_empty(device="cpu")),
    "loaded into no memory": lambda model: loaded(model.to("meta"), assign=True),
    "loaded": loaded,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_layers_stay_tied_when(change):
    assert tied(change(classifier()))


def test_a_shared_weight_gets_the_gradients_of_all_layers():
    model = classifier(depth=2)
    apart = classifier(depth=2, sharing="key-value")
    apart.load_state_dict(model.state_dict())
    (together,) = torch.autograd.grad(loss(model), projections(model)[:1])
    assert_close(together, sum(torch.autograd.grad(loss(apart), projections(apart))))


def test_initial_weights_do_not_depend_on_the_depth():
    shallow, deep = classifier(depth=1), classifier(depth=3)
    for model in (shallow, deep):
        initialise(model, seed=3)
    assert_close(projections(deep)[2], projections(shallow)[0], rtol=0, atol=0)


def test_a_shared_weight_is_counted_once():
    parts, apart = (classifier(sharing=how).parameters_by_part() for how in ("layers", "key-value"))
    one = 4 * 12
    assert parts["grows_with_length"] == one
    assert apart["grows_with_length"] == 3 * one
    assert apart["total"] - parts["total"] == 2 * one
    assert apart["attention"] - parts["attention"] == 2 * one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_model_is_smaller_and_comes_back_tied(tmp_path, dtype):
    model = trained(classifier()).to(dtype).eval()
    save(model, tmp_path / "tied", extra={})
    save(classifier(sharing="key-value").to(dtype), tmp_path / "apart", extra={})
    again, _ = read(tmp_path / "tied")
    assert tied(again)
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert_close(again((IDS, NUMBERS.to(dtype)), None), model((IDS, NUMBERS.to(dtype)), None), rtol=0, atol=0)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("apart", "tied")]
    assert sizes[0] - sizes[1] >= 2 * 4 * 12 * dtype.itemsize


def test_an_exported_model_trains_on_with_its_layers_together(tmp_path):
    save(classifier(), tmp_path, extra={})
    again = trained(read(tmp_path)[0])
    assert tied(again)
    assert_close(projections(again), projections(trained(classifier())))


def test_a_checkpoint_restores_weights_and_moments_of_a_tied_network(tmp_path):
    model = classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss(model).backward()
    optimiser.step()
    groups = {"weights": checkpoint.weights(model), "moments": checkpoint.moments(optimiser)}
    checkpoint.write(tmp_path / "kept", groups, {})
    found = checkpoint.read(tmp_path / "kept")
    assert found is not None
    again = classifier()
    later = torch.optim.AdamW(again.parameters(), lr=0.1)
    again.load_state_dict(found[0]["weights"])
    checkpoint.load_moments(later, found[0]["moments"])
    for each, steps in ((model, optimiser), (again, later)):
        steps.zero_grad()
        loss(each).backward()
        steps.step()
    assert tied(again)
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
