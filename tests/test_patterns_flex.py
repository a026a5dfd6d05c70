"""FlexAttention with a pattern's block mask attends to the pattern's pairs: on the CPU, where it runs too."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from subquad.mechanism import Dims
from subquad.ops import backends
from subquad.patterns import (
    CAUSAL,
    Blocks,
    Columns,
    Dilated,
    Fixed,
    Global,
    Local,
    PerHead,
    Random,
    Ring,
    Rows,
    Strided,
    Summaries,
    flex,
)
from subquad.patterns.blocks import block_lists
from subquad.patterns.flex import PatternCall
from subquad.registry import build

BLOCK = 16
PATTERNS = [
    Local(20),
    Local(20) & CAUSAL,
    Dilated(3, 4),
    Dilated(2, 1) & CAUSAL,
    Strided(16) | Random(2),
    Strided(2) & Local(7),
    Summaries(40, 3, 20),
    Summaries(64, 40),
    Fixed(48, 5),
    Fixed(32, 20) & CAUSAL,
    Global(20, last=20),
    Columns(3, last=2) | Rows(18),
    Ring(3, start=1) | Global(1),
    (Local(20) | Global(2) | Random(3)) & CAUSAL,
    Blocks(Local(1) | Global(1, last=1) | Random(1), 16),
    Blocks(Local(1) | Random(2), 24) & CAUSAL,
    Blocks(Blocks(Local(0), 3) | Random(1), 4),
    PerHead(Local(20), Strided(16) & CAUSAL),
]


def pairs(pattern, length, n):
    """All pairs of real tokens, by block: (heads, blocks, blocks, pairs of a block)."""
    at = torch.arange(length)
    each = pattern.patterns if isinstance(pattern, PerHead) else (pattern,)
    masks = torch.stack([one.allows(at[:, None], at[None], torch.full((1, 1), n)) for one in each])
    masks &= (at[:, None] < n) & (at < n)
    count = -(-length // BLOCK)
    padded = torch.zeros(len(each), count * BLOCK, count * BLOCK, dtype=torch.bool)
    padded[:, :length, :length] = masks
    return padded.unflatten(2, (count, BLOCK)).unflatten(1, (count, BLOCK)).transpose(2, 3).flatten(3)


@pytest.mark.parametrize("lengths", [(64, 64, 33), (101, 48, 1)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_every_pair_is_in_a_block_that_is_asked_or_full_and_full_ones_hold_nothing_else(pattern, lengths):
    asked, full = block_lists(pattern, lengths[0], torch.tensor(lengths), block=BLOCK)
    for row, n in enumerate(lengths):
        held = pairs(pattern, lengths[0], n)
        assert not (asked[row] & full[row]).any()
        assert (asked[row] | full[row])[held.any(-1)].all()
        assert held[full[row]].all()


@pytest.mark.parametrize(
    "pattern", [Local(20), Local(40) & CAUSAL, Strided(48), Fixed(48, 5), Random(2)], ids=repr
)
def test_no_block_without_a_pair_is_asked(pattern):
    asked, full = block_lists(pattern, 101, torch.tensor([101]), block=BLOCK)
    assert torch.equal((asked | full)[0], pairs(pattern, 101, 101).any(-1))


def test_windows_have_full_blocks():
    _, full = block_lists(Local(40) & CAUSAL, 101, torch.tensor([101]), block=BLOCK)
    assert full.any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"device": "cpu"}, "CUDA"),
        ({"dtype": torch.float64}, "float64"),
        ({"width": 8}, "wide"),
        ({"length": 0}, "no tokens"),
    ],
    ids=str,
)
def test_flex_says_why_it_refuses(options, reason):
    sizes = {"device": "cuda", "dtype": torch.float16, "width": 64, "length": 256} | options
    with FakeTensorMode():
        shape = (2, 2, sizes["length"], sizes["width"])
        q = torch.empty(shape, dtype=sizes["dtype"], device=sizes["device"])
        refusal = flex.refuses(PatternCall(Local(4), q, q, q, None))
    assert (refusal is None) if reason is None else (reason in refusal)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["longformer", "local", "bigbird", "sparse-transformer", "star"])
def test_patterns_of_all_mechanisms_go_to_flex_where_it_does_not_refuse(name, padded, monkeypatch):
    served = []
    monkeypatch.setattr(flex, "refuses", lambda call: None)
    monkeypatch.setattr(flex, "forward", lambda call: served.append(call) or torch.zeros_like(call.v))
    mechanism = build(name, Dims(heads=2, head_dim=4), causal=False)
    inputs = {key: torch.randn(2, 2, 10, width) for key, width in mechanism.projections().items()}
    valid = torch.arange(10) < torch.tensor([[10], [6]]) if padded else None
    mechanism(**inputs, valid=valid)
    assert len(served) == 1
    assert (served[0].n is not None) == padded
    with backends.using("reference"):
        mechanism(**inputs, valid=valid)
    assert len(served) == 1


ATTEND = """
import sys, torch
from torch.testing import assert_close
from subquad.patterns import attend, flex
from subquad.patterns.flex import PatternCall
from subquad.patterns.grammar import parse
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
q, k, v = torch.randn(3, 2, 2, 200, 16, dtype=torch.float64, generator=generator).unbind(0)
real = torch.arange(200) < torch.tensor([[200], [77]])
for pattern in map(parse, sys.argv[1:]):
    for n in (None, real.sum(1)):
        exact = attend(pattern, q, k, v, n=n)
        if n is not None:
            exact = exact.masked_fill(~real[:, None, :, None], 0)
        assert_close(flex.forward(PatternCall(pattern, q, k, v, n)), exact, msg=f"{pattern}: ".__add__)
"""

COMPILED = """
import sys, torch
from torch.testing import assert_close
from subquad.mechanism import Dims
from subquad.patterns import flex
from subquad.registry import build
torch.set_num_threads(1)
mechanism = build(sys.argv[1], Dims(heads=2, head_dim=16), causal=False)
compiled, refuses = torch.compile(mechanism, fullgraph=True, dynamic=True), flex.refuses
for length in (200, 270):
    inputs = {key: torch.randn(2, 2, length, width) for key, width in mechanism.projections().items()}
    valid = torch.rand(2, length) < 0.8
    with torch.no_grad():
        flex.refuses = refuses
        exact = mechanism(**inputs, valid=valid)
        flex.refuses = lambda call: None
        assert_close(compiled(**inputs, valid=valid), exact)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


def run_apart(script, *arguments):
    """In a process of its own: the tests' run-time type checks are no part of what FlexAttention captures."""
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_flex_attention_attends_to_the_pairs():
    run_apart(ATTEND, *map(repr, PATTERNS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["longformer", "bigbird"])
def test_compiled_for_the_cpu_one_kernel_attends_to_the_pairs_whatever_the_length(name):
    run_apart(COMPILED, name)
