"""Features are drawn anew when they are due, everywhere alike, and never in eval mode."""

import copy

import pytest
import torch
from experiments_sample import Interrupted, changed, quick
from own_sample import write
from torch.testing import assert_close

from subquad import checkpoint, tasks
from subquad.experiments.training import Training
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.redraw import redraw


def encoder(attention="performer", depth=2, **options):
    return Encoder(
        EncoderConfig(dim=8, depth=depth, heads=2, attention=attention, options=options, max_len=16)
    )


def drawn(model):
    return [tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("project.W")]


def scheduled(every=3):
    return encoder(features=6, redraw_every=every)


def test_features_are_drawn_when_they_are_due_and_at_no_other_step():
    model, changed = scheduled(every=3), []
    for step in range(10):
        before = drawn(model)
        redraw(model, step=step, seed=0)
        after = drawn(model)
        if not torch.equal(before[0], after[0]):
            assert not torch.equal(before[1], after[1])
            changed.append(step)
    assert changed == [3, 6, 9]


def test_layers_steps_and_seeds_draw_different_features():
    model, seen = scheduled(), []
    for step, seed in ((3, 0), (6, 0), (3, 1)):
        redraw(model, step=step, seed=seed)
        seen += drawn(model)
    assert len({tuple(W.flatten().tolist()) for W in seen}) == 6


def test_ranks_draw_the_same_whatever_was_drawn_before():
    first, second = scheduled(), torch.nn.Sequential(scheduled())  # as wrapped for distributed training
    redraw(first, step=3, seed=0)
    torch.manual_seed(99)
    redraw(second, step=6, seed=0)
    redraw(first, step=6, seed=0)
    for mine, others in zip(drawn(first), drawn(second), strict=True):
        assert torch.equal(mine, others)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    model = scheduled()
    torch.set_rng_state(before)
    redraw(model, step=3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_drawn_in_eval_mode():
    model = scheduled().eval()
    before = drawn(model)
    redraw(model, step=3, seed=0)
    for mine, was in zip(drawn(model), before, strict=True):
        assert torch.equal(mine, was)


@pytest.mark.parametrize(("attention", "options"), [("performer", {}), ("linear", {}), ("softmax", {})])
def test_a_mechanism_without_a_schedule_keeps_what_it_has(attention, options):
    model = encoder(attention, **options)
    before = copy.deepcopy(model.state_dict())
    redraw(model, step=1000, seed=0)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_training_redraws_and_does_not_notice_an_interruption(tmp_path):
    schema = write(tmp_path / "own")
    data = tasks.load("custom", schema=str(schema))
    options = {"features": 6, "redraw_every": 4}
    spec = changed(
        quick(schema, data),
        mechanism={"attention": "performer", "options": options},
        training={"steps": 30},
        validate=30,
    )

    def interrupt(phase, step, loss):
        if step == 27:
            raise Interrupted

    def training(name, tell):
        return Training(spec, data, checkpoint_path=tmp_path / name, tell=tell)

    undisturbed = training("undisturbed", lambda *told: None)
    initial = drawn(undisturbed.model)
    undisturbed.run()
    assert not torch.equal(drawn(undisturbed.model)[0], initial[0])
    with pytest.raises(Interrupted):
        training("kept", interrupt).run()
    resumed = training("kept", lambda *told: None)
    assert resumed.course.step == 25
    resumed.run()
    assert_close(checkpoint.weights(resumed.model), checkpoint.weights(undisturbed.model), rtol=0, atol=0)
