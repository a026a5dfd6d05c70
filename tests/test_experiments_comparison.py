"""A comparison is resolved into runs, and refused, before the first of them."""

from dataclasses import replace

import pytest
import torch
from own_sample import write

from subquad.config import ModelConfig
from subquad.experiments import benchmark
from subquad.experiments.comparison import plan
from subquad.experiments.config import MULTIPLES, Benchmark, Comparison, TrainingConfig
from subquad.notation import written


def custom(schema):
    return written("custom", {"schema": str(schema)})


@pytest.fixture
def config(tmp_path):
    return Comparison(
        tasks=(custom(write(tmp_path / "own")),),
        attention=("linear", "infinity"),
        model=ModelConfig(dim=8, heads=2),
        device="cpu",
    )


def test_every_row_is_fitted_once_a_seed_and_baselines_stand_beside(config):
    planned = plan(replace(config, seeds=2))
    assert [(fit.seed, fit.mechanism.attention) for fit in planned.fits] == [
        (0, "linear"),
        (0, "infinity"),
        (1, "linear"),
        (1, "infinity"),
    ]
    assert [(baseline.baseline, baseline.seed) for baseline in planned.baselines] == [
        ("majority", 0),
        ("boosting", 0),
        ("boosting", 1),
    ]
    assert len(planned.benches) == 2 * len(MULTIPLES)
    assert len({spec.key for spec in planned.specs}) == len(planned.specs)


def test_rows_differ_in_the_mechanism_alone(config):
    linear, infinity = plan(config).fits
    assert infinity.mechanism != linear.mechanism
    assert replace(infinity, mechanism=linear.mechanism) == linear


def test_a_length_beyond_the_longest_history_means_all_of_it(config):
    whole, longer = plan(replace(config, length=10**6)), plan(replace(config, length=10**7))
    assert {fit.data.length for fit in whole.fits} == {20}
    assert [spec.key for spec in whole.specs] == [spec.key for spec in longer.specs]


def test_more_seeds_or_rows_keep_the_runs_of_fewer(config):
    few, many = plan(replace(config, attention=("linear",))), plan(replace(config, seeds=3))
    assert {spec.key for spec in few.specs} < {spec.key for spec in many.specs}


def test_where_own_data_lie_does_not_matter_and_what_they_hold_does(config, tmp_path):
    moved = plan(replace(config, tasks=(custom(write(tmp_path / "elsewhere")),)))
    assert [fit.key for fit in moved.fits] == [fit.key for fit in plan(config).fits]
    events = tmp_path / "elsewhere" / "events.csv"
    events.write_text(events.read_text() + "a0,2024-12-31,in,3.0\n")
    changed = plan(replace(config, tasks=(custom(tmp_path / "elsewhere" / "schema.toml"),)))
    assert not {fit.key for fit in changed.fits} & {fit.key for fit in moved.fits}


def test_workers_share_the_threads(config):
    (fit, *_) = plan(replace(config, workers=1000)).fits
    assert fit.place.threads == 1
    assert plan(config).fits[0].place.threads == torch.get_num_threads()


def test_the_bench_goes_with_the_length_unless_it_is_given_others(config):
    def lengths(**change):
        return sorted({cell.length for cell in plan(replace(config, **change)).benches})

    assert lengths(length=8) == [8, 16, 32, 64, 128]
    assert lengths() == [20, 40, 80, 160, 320]  # no history is longer than 20
    assert lengths(lengths=(64, 32)) == [32, 64]
    assert lengths(bench=False) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": 0}, "learning_rate must be a positive number, not 0"),
        ({"weight_decay": -1.0}, "weight_decay must be zero or a positive number, not -1.0"),
        ({"precision": "8"}, "precision must be one of 32-true, .*, not '8'"),
    ],
)
def test_a_training_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"device": "cuda:7"}, "no device 'cuda:7' here"),
        ({"model": ModelConfig(positions="sinus")}, "unknown positions 'sinus'"),
        ({"attention": ("infinity:basis=3",)}, "basis must be even"),
    ],
)
def test_what_cannot_be_compared_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        plan(replace(config, **change))


def test_a_bench_without_a_causal_flag_takes_the_form_there_is():
    planned = benchmark.plan(Benchmark(attention=("linear", "infinity"), lengths=(64, 32)))
    assert [(cell.mechanism.attention, cell.mechanism.causal, cell.length) for cell in planned.specs] == [
        ("linear", False, 32),
        ("infinity", True, 32),
        ("linear", False, 64),
        ("infinity", True, 64),
    ]
    assert all(
        cell.mechanism.causal for cell in benchmark.plan(Benchmark(attention=("linear",), causal=True)).specs
    )
