"""A comparison is resolved into runs, and refused, before the first of them."""

from dataclasses import replace

import pytest
import torch
from own_sample import write

from subquad.experiments import benchmark
from subquad.experiments.comparison import plan
from subquad.experiments.config import MULTIPLES, Benchmark, Comparison
from subquad.experiments.notation import written


def custom(schema):
    return written("custom", {"schema": str(schema)})


@pytest.fixture
def asked(tmp_path):
    return Comparison(
        task=custom(write(tmp_path / "own")),
        attention=("linear", "infinity"),
        dim=8,
        heads=2,
        device="cpu",
    )


def test_every_row_is_fitted_once_a_seed_and_baselines_stand_beside(asked):
    planned = plan(replace(asked, seeds=2))
    assert [(fit.seed, fit.attention) for fit in planned.fits] == [
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


def test_rows_differ_in_the_mechanism_alone(asked):
    linear, infinity = plan(asked).fits
    assert replace(infinity, attention="linear", causal=False) == linear


def test_a_length_beyond_the_longest_history_means_all_of_it(asked):
    whole, longer = plan(replace(asked, length=10**6)), plan(replace(asked, length=10**7))
    assert {fit.length for fit in whole.fits} == {20}
    assert [spec.key for spec in whole.specs] == [spec.key for spec in longer.specs]


def test_more_seeds_or_rows_keep_the_runs_of_fewer(asked):
    few, many = plan(replace(asked, attention=("linear",))), plan(replace(asked, seeds=3))
    assert {spec.key for spec in few.specs} < {spec.key for spec in many.specs}


def test_where_own_data_lie_does_not_matter_and_what_they_hold_does(asked, tmp_path):
    moved = plan(replace(asked, task=custom(write(tmp_path / "elsewhere"))))
    assert [fit.key for fit in moved.fits] == [fit.key for fit in plan(asked).fits]
    events = tmp_path / "elsewhere" / "events.csv"
    events.write_text(events.read_text() + "a0,2024-12-31,in,3.0\n")
    changed = plan(replace(asked, task=custom(tmp_path / "elsewhere" / "schema.toml")))
    assert not {fit.key for fit in changed.fits} & {fit.key for fit in moved.fits}


def test_workers_share_the_threads(asked):
    (fit, *_) = plan(replace(asked, workers=1000)).fits
    assert fit.threads == 1
    assert plan(asked).fits[0].threads == torch.get_num_threads()


def test_the_bench_goes_with_the_length_unless_it_is_given_others(asked):
    def lengths(**change):
        return sorted({cell.length for cell in plan(replace(asked, **change)).benches})

    assert lengths(length=8) == [8, 16, 32, 64, 128]
    assert lengths() == [20, 40, 80, 160, 320]  # no history is longer than 20
    assert lengths(lengths=(64, 32)) == [32, 64]
    assert lengths(bench=False) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"heads": 3}, "dim must be a multiple of heads, and 8 is none of 3"),
        ({"precision": "8"}, "unknown precision '8'; there are 32-true"),
        ({"device": "cuda:7"}, "no device 'cuda:7' here"),
        ({"positions": "sinus"}, "sinus"),
        ({"attention": ("infinity:basis=3",)}, "basis must be even"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, change, message):
    with pytest.raises(ValueError, match=message):
        plan(replace(asked, **change))


def test_a_bench_without_a_causal_flag_takes_the_form_there_is():
    planned = benchmark.plan(Benchmark(attention=("linear", "infinity"), lengths=(64, 32)))
    assert [(cell.attention, cell.causal, cell.length) for cell in planned.specs] == [
        ("linear", False, 32),
        ("infinity", True, 32),
        ("linear", False, 64),
        ("infinity", True, 64),
    ]
    assert all(cell.causal for cell in benchmark.plan(Benchmark(attention=("linear",), causal=True)).specs)
