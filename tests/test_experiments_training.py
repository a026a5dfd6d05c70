"""The training loop is the same for every row, and does not notice that it was interrupted."""

import json
from math import isfinite

import numpy as np
import polars as pl
import pytest
import torch
from experiments_sample import Interrupted, changed, quick, silent
from own_sample import write
from torch.testing import assert_close

import subquad
from subquad import checkpoint, tasks
from subquad.experiments.fit import fit
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export
from subquad.experiments.training import Training, learning_rate
from subquad.task import SupervisedData

REGIONS = ("east", "north", "west")


@pytest.fixture
def spec(schema, data):
    return quick(schema, data)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(spec, data, folder, tell=silent):
    training = Training(spec, data, checkpoint_path=folder / "kept.safetensors", tell=tell)
    training.run()
    return training


@pytest.mark.parametrize("attention", ["linear", "infinity"])
def test_an_interrupted_training_ends_like_an_undisturbed_one(spec, data, tmp_path, attention):
    spec = changed(spec, mechanism={"attention": attention, "causal": attention == "infinity"})

    def interrupt(phase, step, loss):
        if step == 33:
            raise Interrupted

    undisturbed = trained(spec, data, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        trained(spec, data, tmp_path, interrupt)
    torch.manual_seed(1)  # another process has other random numbers
    resumed = Training(spec, data, checkpoint_path=tmp_path / "kept.safetensors", tell=silent)
    assert resumed.course.step == 25
    resumed.run()
    assert resumed.course.curve == undisturbed.course.curve
    assert_close(checkpoint.weights(resumed.model), checkpoint.weights(undisturbed.model), rtol=0, atol=0)
    assert resumed.evaluate("test").scores == undisturbed.evaluate("test").scores


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def of_another_version(path):
    groups, numbers = checkpoint.read(path) or ({}, {})
    checkpoint.write(path, groups, {**numbers, "course": {**numbers["course"], "mood": "good"}})


def of_another_model(path):
    groups, numbers = checkpoint.read(path) or ({}, {})
    weights = {**groups["weights"], "head.bias": groups["weights"]["head.bias"].repeat(2)}
    checkpoint.write(path, {**groups, "weights": weights}, numbers)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "kept.safetensors' is damaged"),
        (flip, "it is not as it was written"),
        (of_another_version, "course.mood: unexpected"),
        (of_another_model, r"weights.head.bias: has the shape \(2,\), and in this version \(1,\)"),
        (a_folder, "Is a directory"),
    ],
)
def test_a_damaged_checkpoint_is_told_and_kept_and_training_begins_anew(
    spec, data, tmp_path, damage, message
):
    def interrupt(phase, step, loss):
        if step == 33:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(spec, data, tmp_path, interrupt)
    path = tmp_path / "kept.safetensors"
    damage(path)
    with pytest.warns(UserWarning, match=rf"{message}.*; training begins anew.*kept.safetensors.damaged"):
        again = Training(spec, data, checkpoint_path=path, tell=silent)
    assert again.course.step == 0
    assert not path.exists()
    fresh = Training(spec, data, checkpoint_path=tmp_path / "none", tell=silent)
    assert_close(checkpoint.weights(again.model), checkpoint.weights(fresh.model), rtol=0, atol=0)


def test_the_best_weights_so_far_survive_an_interruption(spec, data, tmp_path):
    def interrupt(phase, step, loss):
        if step == 33:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(spec, data, tmp_path, interrupt)
    resumed = Training(spec, data, checkpoint_path=tmp_path / "kept.safetensors", tell=silent)
    assert resumed.course.best_step == 20
    resumed.model.load_state_dict(resumed.best)
    assert resumed.evaluate("validation").scores == resumed.course.best


def test_an_epoch_takes_every_example_once(spec, data, tmp_path):
    training = Training(spec, data, checkpoint_path=tmp_path / "none", tell=silent)
    batches = training.batches()
    sizes = [len(next(batches).target) for _ in range(10)]
    assert training.course.epoch == 1
    assert sum(sizes) == 2 * len(data.train)


def test_the_weights_that_were_best_on_validation_are_kept(spec, data, tmp_path):
    training = trained(changed(spec, training={"learning_rate": 0.03}), data, tmp_path)
    assert training.course.best_step < training.course.step
    seen = [point["validation"] for point in training.course.curve if "validation" in point]
    assert len(seen) == 3
    assert training.course.best == max(seen, key=lambda found: (found["auc"], -found["loss"]))
    assert training.evaluate("validation").scores == training.course.best


def test_less_is_better_where_the_metric_is_an_error(tmp_path, spec):
    data = tasks.load("custom", schema=str(write(tmp_path / "own", column="age", kind="regression")))
    training = trained(spec, data, tmp_path)
    seen = [point["validation"]["mae"] for point in training.course.curve if "validation" in point]
    assert training.course.best["mae"] == min(seen)


@pytest.mark.parametrize(
    ("column", "kind"), [("over_55", "binary"), ("region", "multiclass"), ("age", "regression")]
)
def test_every_kind_of_target_is_learnt(tmp_path, spec, column, kind):
    data = tasks.load("custom", schema=str(write(tmp_path / "own", column=column, kind=kind)))
    curve = trained(spec, data, tmp_path).course.curve
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_rows_see_the_same_examples_and_start_from_the_same_weights(spec, data, tmp_path):
    one, other = (
        Training(
            changed(spec, mechanism={"attention": name}), data, checkpoint_path=tmp_path / "none", tell=silent
        )
        for name in ("linear", "softmax")
    )
    assert_close(dict(one.model.named_parameters()), dict(other.model.named_parameters()), rtol=0, atol=0)
    batches = zip(one.batches(), other.batches(), range(12), strict=False)
    for mine, theirs, _ in batches:
        assert_close(tuple(mine), tuple(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["softmax", "performer", "reformer", "routing"])
def test_what_a_mechanism_draws_or_learns_never_moves_the_data_order(spec, data, tmp_path, attention):
    def seen(name, *, seed=0):
        several = changed(spec, mechanism={"attention": name}, training={"steps": 12, "batch": 7}, seed=seed)
        training, order = Training(several, data, checkpoint_path=tmp_path / "none", tell=silent), []
        for batch in training.batches():
            order.append(batch.example.tolist())
            training.step(iter([batch]))
            if training.course.step == several.training.steps:
                break
        return training.course.epoch, order

    assert seen(attention) == seen("linear")
    assert seen(attention)[0] > 0  # more than one epoch
    assert seen(attention, seed=1) != seen(attention)


def test_the_test_split_is_read_once_and_last(spec, data, tmp_path):
    phases = []
    fit(spec, data, checkpoint_path=tmp_path / "kept", tell=lambda phase, step, loss: phases.append(phase))
    assert phases.count("test") == 1
    assert phases.index("test") > max(place for place, phase in enumerate(phases) if phase == "validate")


@pytest.mark.parametrize(("column", "kind"), [("region", "multiclass"), ("age", "regression")])
def test_what_each_example_adds_is_kept_in_the_order_of_the_split(tmp_path, spec, column, kind):
    data = tasks.load("custom", schema=str(write(tmp_path / "own", column=column, kind=kind)))
    assert isinstance(data, SupervisedData)
    training = trained(changed(spec, training={"steps": 3, "batch": 7}), data, tmp_path)
    judged = training.evaluate("test")
    assert judged.contributions.mean() == pytest.approx(judged.scores[data.objective.metric])
    training.network.eval()
    for batch in data.batches("test", size=1, length=spec.data.length, seed=0, epoch=0, shuffle=False):
        contribution, truth = judged.contributions[int(batch.example)], data.truth("test")[batch.example]
        output = training.output(batch)[0].detach()
        if kind == "regression":
            error = abs(float(data.objective.restored(output[None].numpy())[0]) - truth.item())
            assert contribution == pytest.approx(error, rel=1e-3)
        else:
            assert contribution == (output.argmax().item() == truth.item())


def test_a_split_is_judged_by_the_kinds_of_its_answers(tmp_path, spec):
    data = tasks.load("custom", schema=str(write(tmp_path / "own", column="region", kind="multiclass")))
    judged = trained(changed(spec, training={"steps": 3, "batch": 7}), data, tmp_path).evaluate("test")
    ((names, of),) = data.kinds("test").values()
    (parts,) = judged.breakdown.values()
    assert tuple(parts) == names
    for place, part in enumerate(parts.values()):
        assert part.value == pytest.approx(judged.contributions[of == place].mean())
        assert part.count == (of == place).sum()


def test_a_step_accumulates_the_batches_asked_for(spec, data, tmp_path):
    training = Training(
        changed(spec, training={"batch": 7, "accumulate": 3}),
        data,
        checkpoint_path=tmp_path / "none",
        tell=silent,
    )
    batches = training.batches()
    assert training.step(batches).examples == 21
    assert training.course.taken == 3


def test_a_loss_that_is_no_number_ends_the_training(spec, data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the .* loss is (nan|inf) .*step"):
        trained(changed(spec, training={"learning_rate": 1e30, "clip": 1e30}), data, tmp_path)


def test_the_mechanisms_penalty_is_trained_on(spec, data, tmp_path):
    def weights(kl_weight):
        options = {"segment": 4, "basis": 8, "narrow": 0.1, "wide": 0.2, "kl_weight": kl_weight}
        penalised = changed(
            spec,
            mechanism={"attention": "infinity", "causal": True, "options": options},
            training={"steps": 5},
        )
        model = trained(penalised, data, tmp_path / str(kl_weight)).model
        return model.state_dict()["encoder.blocks.0.attention.mechanism.long_term.w_sigma"]

    assert not torch.equal(weights(0.0), weights(10.0))


def test_half_precision_trains(spec, data, tmp_path):
    curve = trained(changed(spec, training={"precision": "bf16-mixed"}), data, tmp_path).course.curve
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_the_learning_rate_warms_up_and_falls_to_zero(spec):
    rates = [learning_rate(spec, step) for step in range(spec.training.steps)]
    highest = spec.training.learning_rate
    assert rates[0] == highest / spec.warmup
    assert rates[spec.warmup - 1] == max(rates) == highest
    assert rates[spec.warmup :] == sorted(rates[spec.warmup :], reverse=True)
    assert 0 < rates[-1] < highest / 100


def test_a_fit_says_what_it_took(spec, data, tmp_path):
    fitted = fit(changed(spec, training={"steps": 6}), data, checkpoint_path=tmp_path / "kept", tell=silent)
    latency = fitted.measured["latency_ms"]
    assert 0 < latency["low"] <= latency["median"] <= latency["high"]
    assert latency["length"] == spec.data.length
    rates = [fitted.measured[f"train_{what}_per_second"] for what in ("examples", "units")]
    assert all(isfinite(rate) and rate > 0 for rate in rates)
    assert fitted.measured["peak_mb"] > fitted.measured["training_peak_mb"] >= 0
    assert fitted.result["parameters"]["total"] == sum(p.numel() for p in fitted.model.parameters())


def test_a_loaded_model_answers_for_new_histories_as_the_trained_one(spec, schema, data, tmp_path):
    training = trained(spec, data, tmp_path)
    export(training.model, data, spec, tmp_path / "model")
    events = pl.read_csv(schema.parent / "events.csv", infer_schema=False)
    answers = subquad.load_model(tmp_path / "model").predict(events)
    assert answers.columns == ["account", "class", "probability of false", "probability of true"]
    truth = pl.read_csv(schema.parent / "owners.csv", infer_schema=False)
    asked = [data.histories.entities[place] for place in data.test.entity]
    joined = pl.DataFrame({"account": asked}).join(answers, on="account").join(truth, on="account")
    assert len(joined) == len(data.test)
    old = (joined["over_55"] == "true").to_numpy()
    from sklearn.metrics import roc_auc_score

    assert training.evaluate("test").scores["auc"] == pytest.approx(
        roc_auc_score(old, joined["probability of true"])
    )


@pytest.mark.parametrize(
    ("column", "kind", "columns"),
    [
        ("region", "multiclass", ["account", "class", *(f"probability of {name}" for name in REGIONS)]),
        ("age", "regression", ["account", "value"]),
    ],
)
def test_what_a_loaded_model_says_is_in_the_targets_own_terms(tmp_path, spec, column, kind, columns):
    data = tasks.load("custom", schema=str(write(tmp_path / "own", column=column, kind=kind)))
    training = trained(spec, data, tmp_path)
    export(training.model, data, spec, tmp_path / "model")
    events = pl.read_csv(tmp_path / "own" / "events.csv", infer_schema=False)
    answers = subquad.load_model(tmp_path / "model").predict(events)
    assert answers.columns == columns
    if kind == "regression":
        assert answers["value"].is_between(30, 90).all()
    else:
        chances = answers.select(f"probability of {name}" for name in REGIONS).to_numpy()
        np.testing.assert_allclose(chances.sum(1), 1)
        assert answers["class"].to_list() == [REGIONS[place] for place in chances.argmax(1)]


def put(field, value):
    """Damage to what stands beside a model."""

    def damage(extra):
        *within, last = field.split(".")
        for name in within:
            extra = extra[name]
        extra[last] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("length", "20"), "length: input should be a valid integer, not '20'"),
        (put("length", 0), "length: input should be greater than or equal to 1"),
        (put("encoding.mean", [0.0]), "encoding.mean: are 1, of 4 channels"),
        (
            put("encoding.deviation", [1.0, 1.0, 1.0, 0.0]),
            "encoding.deviation: should be above",
        ),
        (put("encoding.numeric", []), "encoding.mean: are 4, of 3 channels"),
        (put("encoding.clock", "sundial"), "encoding.clock: input should be"),
        (put("encoding.vocabularies", [["in"]]), "encoding: makes Events"),
        (put("objective.classes", ["a"]), "objective.classes: should be two"),
        (put("objective.kind", "ternary"), "objective.kind: should be one of"),
        (lambda extra: extra.pop("encoding"), "encoding: is missing"),
        (lambda extra: extra["objective"].pop("classes"), "objective.classes: is missing"),
    ],
)
def test_what_stands_beside_a_model_is_of_its_types_and_goes_together(spec, data, tmp_path, damage, message):
    export(build_model(spec, data), data, spec, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    damage(config["extra"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"holds a model that `compare` did not write: {message}"):
        subquad.load_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no exported model"):
        subquad.load_model(tmp_path / "nothing")
