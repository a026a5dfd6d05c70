"""The largest of many numbers, the first of equal ones first."""

import pytest
import torch

from subquad.ops.shared.topk import stable_topk


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("values", [3, 1000])
def test_places_are_those_of_a_stable_sort(count, values):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, values, (2, 3, 5, 40), generator=generator).double()
    x[0, 0, 0] = torch.randn(40, dtype=torch.float64, generator=generator)  # a row without equal numbers
    expected = x.argsort(dim=-1, descending=True, stable=True)[..., :count]
    assert torch.equal(stable_topk(x, count), expected)


def test_what_is_masked_comes_last():
    x = torch.full((1, 1, 2, 6), -torch.inf)
    x[..., [4, 1]] = 2.0
    assert stable_topk(x, 2).tolist() == [[[[1, 4], [1, 4]]]]
