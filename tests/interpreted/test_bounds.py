"""A kernel that leaves its tensors is found out, which a card may not do."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def doubled(x, out, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    at = tl.arange(0, BLOCK)
    seen = at < (n if MASKED else BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, mask=seen), mask=seen)


def test_a_read_outside_of_all_tensors_is_an_error():
    x, out = torch.ones(5), torch.empty(5)
    kernel: Any = doubled[(1,)]
    kernel(x, out, 5, BLOCK=8, MASKED=True)
    assert torch.equal(out, 2 * x)
    with pytest.raises(Exception, match="3 numbers lie outside"):
        kernel(x, out, 5, BLOCK=8, MASKED=False)
