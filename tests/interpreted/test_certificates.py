"""The contract of a backend, held by the Triton kernels."""

import pytest

from subquad.testing.backend import certify_backend


@pytest.mark.parametrize("operator", ["linear_attention"])
def test_the_kernels_give_the_numbers_of_the_reference(operator):
    refusals = {outcome.refusal for outcome in certify_backend(operator, "triton")}
    assert None in refusals
