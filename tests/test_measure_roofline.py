import pytest
import torch

from subquad.measure.roofline import Rates, Work, best, rates

SLOW = Rates(flops=100, bytes=10, exponentials=5, threads=1)


def test_a_roofline_adds_products_and_exponentials():
    assert SLOW.seconds(Work(flops=200, bytes=0, exponentials=10)) == 4


def test_a_roofline_is_the_longer_of_computing_and_moving():
    assert SLOW.seconds(Work(flops=200, bytes=100)) == 10


def test_measured_rates_are_those_of_a_computer():
    torch.set_num_threads(1)
    found = rates(seconds=0.05)
    assert 1e8 < found.flops < 1e15
    assert 1e7 < found.bytes < 1e14
    assert 1e6 < found.exponentials < 1e13
    assert found.threads == 1


def test_the_best_call_is_not_the_mean():
    waits = iter([200_000, 0, 0, *[200_000] * 50])
    assert best(lambda: sum(range(next(waits))), 0.01, "cpu", "cpu") < 1e-3


@pytest.mark.parametrize("more", [1, 3])
def test_a_roofline_grows_with_the_work(more):
    work = Work(flops=1, bytes=1, exponentials=1)
    scaled = Work(flops=more, bytes=more, exponentials=more)
    assert SLOW.seconds(scaled) == pytest.approx(more * SLOW.seconds(work))
