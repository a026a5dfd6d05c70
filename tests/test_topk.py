"""The largest of many numbers, the first of equal ones first."""

from contextlib import nullcontext

import pytest
import torch

from subquad.ops.shared.topk import stable_topk
from subquad.ops.shared.waiting import without_waiting


@pytest.fixture(params=[nullcontext, without_waiting], ids=["looking", "without a look"])
def look(request):
    with request.param():
        yield


@pytest.mark.usefixtures("look")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("values", [3, 1000])
def test_places_are_those_of_a_stable_sort(count, values, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-values, values, (2, 3, 5, 40), generator=generator).to(dtype) / 8
    x[0, 0, 0] = torch.randn(40, generator=generator).to(dtype)  # mostly without equal numbers
    x[0, 0, 1] *= -0.0  # zeros of both signs
    expected = x.argsort(dim=-1, descending=True, stable=True)[..., :count]
    assert torch.equal(stable_topk(x, count), expected)


@pytest.mark.usefixtures("look")
def test_what_is_masked_comes_last():
    x = torch.full((1, 1, 2, 6), -torch.inf)
    x[..., [4, 1]] = 2.0
    assert stable_topk(x, 2).tolist() == [[[[1, 4], [1, 4]]]]
