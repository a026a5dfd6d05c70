"""Initial weights depend on the seed and on their names alone."""

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE
from torch import nn
from torch.testing import assert_close

from subquad.fields import Events, Readout
from subquad.nn.encoder import EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.registry import catalog


def classifier(attention: str, *, seed: int, causal: bool = False, depth: int = 2) -> SequenceModel:
    cls = catalog()[attention]
    encoder = EncoderConfig(
        dim=8,
        depth=depth,
        heads=2,
        attention=attention,
        causal=causal or not cls.traits.bidirectional,
        options=dict(cls.traits.tiny),
        positions="learnt",
        max_len=24,
    )
    model = SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=(4, 7), numeric=2), readout=Readout(outputs=3), encoder=encoder
        )
    )
    initialise(model, seed=seed)
    return model


def shared(model: SequenceModel, *, rows: int = 24) -> dict[str, torch.Tensor]:
    """Weights that every mechanism has: all outside it, and of the projections those of q, k and v."""
    weights = {name: value for name, value in model.state_dict().items() if ".mechanism." not in name}
    return {name: value[:rows] if "in_proj" in name else value for name, value in weights.items()}


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_mechanisms_share_all_weights_outside_them(attention):
    rows = 8 if attention == "reformer" else 24  # its queries are its keys
    ours, softmax = (shared(classifier(name, seed=3), rows=rows) for name in (attention, "softmax"))
    assert_close(ours, softmax, rtol=0, atol=0)


def test_depth_leaves_the_layers_below_as_they_are():
    shallow, deep = shared(classifier("linear", seed=3, depth=1)), shared(classifier("linear", seed=3))
    assert_close({name: deep[name] for name in shallow}, shallow, rtol=0, atol=0)


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_all_weights_depend_on_the_seed_and_on_nothing_before(attention):
    models = []
    for seed in (3, 3, 4):
        torch.rand(len(models))  # whatever was drawn before
        models.append(classifier(attention, seed=seed).state_dict())
    assert_close(models[1], models[0], rtol=0, atol=0)
    drawn = dict(classifier(attention, seed=3).named_parameters())
    torch.manual_seed(0)
    other = drawn_by_themselves(attention)
    torch.manual_seed(1)
    for name, value in drawn_by_themselves(attention).items():
        if not torch.equal(value, other[name]):  # else it starts as a constant
            assert (models[2][name] != drawn[name]).any(), name


def drawn_by_themselves(attention: str) -> dict[str, torch.Tensor]:
    return dict(SequenceModel(classifier(attention, seed=3).config).named_parameters())


def test_layers_of_equal_shape_differ():
    weights = classifier("linear", seed=3).state_dict()
    first, second = (weights[f"encoder.blocks.{layer}.mlp.0.weight"] for layer in (0, 1))
    assert (first != second).all()
    assert weights["encoder.positions.table"].std() < 0.05
    assert not weights["encoder.blocks.0.attention.out_proj.bias"].any()


def test_the_global_random_state_is_left_alone():
    model = nn.Linear(3, 3)
    before = torch.get_rng_state()
    initialise(model, seed=1)
    assert_close(torch.get_rng_state(), before)


def test_weights_that_nothing_draws_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="0 has weights and no reset_parameters"):
        initialise(nn.Sequential(Own()), seed=1)


def test_weights_elsewhere_than_on_the_cpu_are_refused():
    with pytest.raises(ValueError, match="initialise, then move"):
        initialise(nn.Linear(3, 3, device="meta"), seed=1)
