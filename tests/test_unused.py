"""Weights that a call has no use for."""

import math

import pytest
import torch

from subquad.ops.shared.unused import unused


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_an_unused_weight_adds_nothing_and_has_a_gradient_of_zeros_whatever_it_holds(shape, value):
    weights = [torch.full(shape, value, requires_grad=True) for _ in range(2)]
    nothing = unused(*weights)
    assert nothing == 0
    for gradient in torch.autograd.grad(nothing, weights):
        torch.testing.assert_close(gradient, torch.zeros(shape))
