"""What tests are run under: annotations are checked, of arrays and of everything else."""

from typing import Any

import pytest
import torch
from annotations import has_arrays
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from subquad.config import SamplingConfig
from subquad.nn.sampling import draw
from subquad.report.formats import listed

if not hasattr(draw, "__wrapped__"):
    pytest.skip("annotations are not checked: pytest runs without its own options", allow_module_level=True)


def test_a_shape_other_than_annotated_fails():
    with pytest.raises(TypeCheckError):
        draw(torch.zeros(2, 5), SamplingConfig(), torch.zeros(2, 2))


def test_a_type_other_than_annotated_fails_where_no_array_is():
    words: Any = 5
    with pytest.raises(BeartypeCallHintParamViolation):
        listed(words)


@pytest.mark.parametrize("hint", [Float[Tensor, " b"], tuple[Float[Tensor, " b"], int] | None, "Later"])
def test_arrays_are_found_within_annotations(hint: Any):
    assert has_arrays(hint)
    assert not has_arrays(tuple[Tensor, int] | None)
