"""The depthwise convolution as a banded product."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.ops.convolution import convolve
from subquad.ops.shared.waiting import without_waiting


@pytest.mark.parametrize("where", [nullcontext, without_waiting])
@pytest.mark.parametrize("length", [1, 5, 100, 131])
@pytest.mark.parametrize("width", [1, 5, 33])
def test_it_is_the_convolution_and_so_are_its_gradients(length, width, where):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, length, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.randn(3, width, dtype=torch.float64, generator=generator, requires_grad=True)
    expected = F.conv2d(x, kernel[:, None, :, None], padding=(width // 2, 0), groups=3)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    with where():
        found = convolve(x, kernel)
        found_back = torch.autograd.grad(found, (x, kernel), grad)
    assert_close(found, expected)
    assert_close(found_back, torch.autograd.grad(expected, (x, kernel), grad))
