"""Memory for large results."""

import weakref

import pytest
import torch

from subquad.ops.shared.allocation import LARGE, concat_into, empty_result


@pytest.mark.parametrize("numbers", [0, 5, LARGE // 4 + 3])
def test_allocated_memory_can_be_written_to_its_ends(numbers):
    x = empty_result(torch.empty(2, 3, dtype=torch.float64), numbers, dtype=torch.float32)
    x.copy_(torch.arange(numbers))
    assert x.is_contiguous()
    assert x[-1:].tolist() == [numbers - 1][:numbers]


def test_a_part_is_let_go_before_the_next_is_made():
    made = []

    def parts():
        for i in range(3):
            assert all(before() is None for before in made)
            part = torch.full((2, 1), float(i))
            made.append(weakref.ref(part))
            yield part
            del part

    with torch.no_grad():
        assert torch.equal(concat_into(parts(), torch.empty(0), 2, 3, dim=1), torch.arange(3.0).expand(2, -1))
