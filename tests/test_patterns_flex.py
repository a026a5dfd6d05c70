"""FlexAttention with a pattern's block mask attends to the pattern's pairs. On the CPU, by its eager form."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from subquad.patterns import (
    CAUSAL,
    Blocks,
    Fixed,
    Global,
    Local,
    PerHead,
    Random,
    Ring,
    Strided,
)
from subquad.patterns.flex import flex_block_mask, touched

PATTERNS = [
    Local(20),
    Local(20) & CAUSAL,
    (Local(20) | Global(2) | Random(3)) & CAUSAL,
    Strided(16) | Random(2),
    Strided(2) & Local(7),
    Fixed(48, 5),
    Ring(3, start=1) | Global(1),
    Blocks(Local(1) | Global(1, last=1) | Random(1), 16),
]


@pytest.mark.parametrize("length", [64, 101])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_touched_blocks_are_those_that_hold_a_pair(pattern, length):
    block, mask = 16, pattern.mask(length)
    count = -(-length // block)
    padded = torch.zeros(count * block, count * block, dtype=torch.bool)
    padded[:length, :length] = mask
    expected = padded.unflatten(1, (count, block)).unflatten(0, (count, block)).any(3).any(1)
    assert_close(touched(pattern, length, block=block), expected)


def test_a_block_mask_lists_the_touched_blocks():
    pattern = PerHead(Local(20), Strided(16) & CAUSAL)
    mask = flex_block_mask(pattern, 101, device=torch.device("cpu"), block=16)
    expected = torch.stack([touched(one, 101, block=16) for one in pattern.patterns])
    assert_close(mask.to_dense()[0].bool(), expected)


ATTEND = """
import sys, torch
from torch.testing import assert_close
from subquad.patterns import attend
from subquad.patterns.flex import flex_attend
from subquad.patterns.grammar import parse
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
q, k, v = torch.randn(3, 2, 2, 200, 16, dtype=torch.float64, generator=generator).unbind(0)
for pattern in map(parse, sys.argv[1:]):
    assert_close(flex_attend(pattern, q, k, v), attend(pattern, q, k, v, n=None), msg=f"{pattern}: ".__add__)
"""


@pytest.mark.slow
def test_flex_attention_attends_to_the_pairs():
    # in a process of its own: the tests' run-time type checks are no part of what FlexAttention captures
    expressions = [repr(pattern) for pattern in (*PATTERNS, PerHead(Local(9), Random(3)) & CAUSAL)]
    run = subprocess.run([sys.executable, "-c", ATTEND, *expressions], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
