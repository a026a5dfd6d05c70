"""FlexAttention with a pattern's block mask attends to the pattern's pairs: on the CPU, where it runs too."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention

from subquad import Dims, backend
from subquad.ops import backends
from subquad.ops.backends import Refused
from subquad.ops.shared.packing import Packing
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
    attend,
    blocks,
)
from subquad.patterns.blocks import block_lists
from subquad.patterns.pattern_attention import PatternCall, flex
from subquad.registry import build
from subquad.torch_internals import TorchDispatchMode, tree_iter

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
    return by_block(masks & (at[:, None] < n) & (at < n))


def by_block(masks):
    (heads, length, _), count = masks.shape, -(-masks.shape[1] // BLOCK)
    padded = torch.zeros(heads, count * BLOCK, count * BLOCK, dtype=torch.bool)
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


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_blocks_of_tokens_with_padding_among_them_hold_the_pairs_of_their_positions(pattern):
    length = 101
    valid = torch.ones(4, length, dtype=torch.bool)
    valid[0, :37] = False  # before all real tokens
    valid[1, 5:70] = False
    valid[2] = torch.arange(length) % 7 != 3
    valid[3] = False
    packing = Packing.of(valid, like=torch.zeros(4, 1, length, 1))
    assert packing.place is not None
    asked, full = block_lists(pattern, length, packing.count, valid, block=BLOCK)
    for row, places in enumerate(packing.place):
        n = int(packing.count[row])
        each = pattern.patterns if isinstance(pattern, PerHead) else (pattern,)
        masks = [one.allows(places[:, None], places[None], torch.full((1, 1), n)) for one in each]
        held = by_block(torch.stack(masks) & valid[row] & valid[row, :, None])
        assert not (asked[row] & full[row]).any()
        assert (asked[row] | full[row])[held.any(-1)].all()
        assert held[full[row]].all()


def test_padding_behind_the_last_token_makes_no_other_blocks_than_lengths_do():
    n = torch.tensor([101, 40, 0])
    for pattern in (Local(20), Local(40) & CAUSAL, Global(2, last=1) | Local(9)):
        lists = block_lists(pattern, 101, n, torch.arange(101) < n[:, None], block=BLOCK)
        assert all(map(torch.equal, lists, block_lists(pattern, 101, n, block=BLOCK)))


def test_blocks_without_an_end_are_worked_out_once_for_all_lengths_that_take_as_many(monkeypatch):
    pattern, calls, grids = Local(5) | Columns(2) | Columns(1), [], blocks.grids  # which no other test has
    monkeypatch.setattr(blocks, "grids", lambda *inputs: calls.append(inputs) or grids(*inputs))
    for lengths in ((64, 30), (64, 64), (57, 3)):
        asked, full = block_lists(pattern, max(lengths), torch.tensor(lengths), block=BLOCK)
        for row, n in enumerate(lengths):
            held = pairs(pattern, max(lengths), n)
            assert torch.equal((asked | full)[row], held.any(-1))
    assert len(calls) == 1


class OffHost(TorchDispatchMode):
    """Nothing is computed on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert not any(x.is_cpu for x in tree_iter(out) if isinstance(x, torch.Tensor)), func
        return out


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_masks_are_made_on_the_device_and_wait_for_none_of_its_numbers(pattern, padded):
    device = torch.device("meta")  # where reading a number is an error
    with OffHost():
        valid = torch.empty(2, 300, dtype=torch.bool, device=device) if padded else None
        like = torch.empty(2, 2, 300, 16, device=device)
        flex.block_mask(pattern, 300, Packing.of(valid, like=like) if padded else None, device)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"triton": False}, "needs Triton"),
        ({"device": "cpu"}, "CUDA"),
        ({"dtype": torch.float64}, "float64"),
        ({"width": 8}, "wide"),
        ({"length": 0}, "no tokens"),
    ],
    ids=str,
)
def test_flex_says_why_it_refuses(options, reason, monkeypatch):
    sizes = {"device": "cuda", "dtype": torch.float16, "width": 64, "length": 256, "triton": True} | options
    monkeypatch.setattr(flex, "has_triton", lambda: sizes["triton"])
    with FakeTensorMode():
        shape = (2, 2, sizes["length"], sizes["width"])
        q = torch.empty(shape, dtype=sizes["dtype"], device=sizes["device"])
        refusal = flex.refuses(PatternCall(Local(4), q, q, q, None))
    assert (refusal is None) if reason is None else (reason in refusal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["longformer", "local", "bigbird", "sparse-transformer", "star"])
def test_patterns_of_all_mechanisms_go_to_flex_where_it_does_not_refuse(name, padded, dtype, monkeypatch):
    served = []
    monkeypatch.setattr(flex, "refuses", lambda call: None)
    monkeypatch.setattr(flex, "forward", lambda call: served.append(call) or torch.zeros_like(call.v))
    mechanism = build(name, Dims(heads=2, head_dim=4), causal=False)
    inputs = {
        key: torch.randn(2, 2, 10, width, dtype=dtype) for key, width in mechanism.projections().items()
    }
    valid = torch.arange(10) < torch.tensor([[10], [6]]) if padded else None
    assert "pattern_attention: flex" in str(backend(mechanism, **inputs, valid=valid))
    ((_, q, _, _, served_valid),) = served
    assert served_valid is valid
    assert q.dtype == dtype
    with backends.using("reference"):
        mechanism(**inputs, valid=valid)
    assert len(served) == 1


def qkv(length=40):
    return torch.randn(3, 2, 2, length, 16, generator=torch.Generator().manual_seed(1)).unbind(0)


def test_within_using_flex_a_call_that_it_refuses_is_refused_for_its_reason():
    with backends.using("flex"), pytest.raises(Refused, match="flex refuses: it serves CUDA, not cpu"):
        attend(Local(3), *qkv(), valid=None)


def test_a_pattern_of_other_heads_is_refused_whatever_would_serve():
    with pytest.raises(ValueError, match="is for 3 heads, not 2"):
        attend(PerHead(Local(1), Local(2), Local(3)), *qkv(), valid=None)


ATTEND = """
import sys, torch
from torch.testing import assert_close
from subquad.patterns import attend
from subquad.patterns.grammar import parse
from subquad.patterns.pattern_attention import PatternCall, flex
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
q, k, v = torch.randn(3, 2, 2, 200, 16, dtype=torch.float64, generator=generator).unbind(0)
behind = torch.arange(200) < torch.tensor([[200], [77]])
holes = torch.rand(2, 200, generator=generator) < 0.6
holes[1, 20:170] = False
for pattern in map(parse, sys.argv[1:]):
    for valid in (None, behind, holes):
        x = (q, k, v)
        exact = attend(pattern, *x, valid=valid)
        if valid is not None:
            x = (y.masked_fill(~valid[:, None, :, None], torch.nan) for y in x)
        assert_close(flex.forward(PatternCall(pattern, *x, valid)), exact, msg=f"{pattern}: ".__add__)
"""

COMPILED = """
import sys, torch
from torch.testing import assert_close
from subquad.mechanism import Dims
from subquad.patterns.pattern_attention import flex
from subquad.registry import build
torch.set_num_threads(1)
torch._inductor.config.epilogue_fusion = False  # its kernel for the CPU takes none
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

EXPLAINED = """
import torch
from subquad import backend
from subquad.ops.backends import Refused, using
from subquad.patterns import Global, Local, PerHead, attend

pattern = PerHead(Local(3), Local(2) | Global(1))

def attention(*inputs):
    return attend(pattern, *inputs, valid=None)

compiled = torch.compile(attention, backend="eager", fullgraph=True)
inputs = torch.randn(3, 2, 2, 40, 16).unbind(0)
choices = backend(attention, *inputs)
assert str(choices[0]) == "pattern_attention: tiles\\n  flex refuses: it serves CUDA, not cpu", choices
assert backend(compiled, *inputs) == choices
assert backend(compiled, *inputs) == choices  # which traces no more
with using("reference"):
    assert backend(compiled, *inputs) == backend(attention, *inputs) != choices
try:
    with using("flex"):
        compiled(*inputs)
except Refused as error:
    assert "and the graph has this one: compile it within" in str(error)
else:
    raise AssertionError("served by another")
"""

LOWERED = """
import sys, torch
from itertools import product
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from subquad.ops.shared.packing import Packing
from subquad.patterns.grammar import parse
from subquad.patterns.pattern_attention import flex
torch.set_num_threads(1)

def stop(self, *inputs):
    raise RuntimeError("lowered")

def lower(graph, inputs):
    try:
        compile_fx(graph, inputs)
    except Exception as error:
        assert "lowered" in str(error), error
        graphs.append(graph)
    return graph.forward

GraphLowering.codegen = GraphLowering.compile_to_module = stop
for pattern, padded in product(map(parse, sys.argv[1:]), (True, False)):
    torch._dynamo.reset()
    compiled = torch.compile(flex.blockwise, backend=lower, dynamic=True, fullgraph=True)
    graphs, counts = [], []
    for lengths in ([256, 100], [200, 256], [384, 300], [1, 640], [1000, 400], [7, 1280]):
        q, k, v = torch.randn(3, 2, 2, max(lengths), 16).unbind(0)
        valid = torch.arange(max(lengths)).flip(0) < torch.tensor(lengths)[:, None]  # behind padding
        packing = Packing.of(valid, like=q) if padded else None
        with torch.no_grad():
            compiled(q, k, v, flex.block_mask(pattern, q.shape[2], packing, q.device))
        counts.append(len(graphs))
    assert counts[0] == 1 and counts[-1] == counts[2] <= 2, (pattern, padded, counts)
"""

GRADIENTS = """
import sys, torch
import torch.nn.attention.flex_attention as private
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.testing import assert_close
from subquad.patterns import attend
from subquad.patterns.grammar import parse
from subquad.patterns.pattern_attention import PatternCall, flex
torch.set_num_threads(1)

def compiler(graphs):
    def count(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)
    return count

private._validate_device = lambda *inputs: None  # it refuses gradients on the CPU, where graphs have them
blockwise = flex.blockwise
for pattern in map(parse, sys.argv[1:]):
    torch._dynamo.reset()
    forward, backward = [], []
    backend = aot_autograd(fw_compiler=compiler(forward), bw_compiler=compiler(backward))
    flex.blockwise = torch.compile(blockwise, backend=backend, dynamic=True, fullgraph=True)
    for length in (200, 300, 260):
        x = torch.randn(3, 2, 2, length, 16, dtype=torch.float64).unbind(0)
        valid = torch.rand(2, length) < 0.6
        valid[1, 20:150] = False
        results = []
        for padding, run in ((torch.nan, lambda *y: flex.forward(PatternCall(pattern, *y, valid))),
                             (0.0, lambda *y: attend(pattern, *y, valid=valid))):
            leaves = [y.masked_fill(~valid[:, None, :, None], padding).requires_grad_() for y in x]
            out = run(*leaves)
            results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)])
        assert_close(*results, msg=f"{pattern}: ".__add__)
    assert len(forward) == len(backward) <= 2, (pattern, len(forward), len(backward))
"""

KINDS = """
import torch
from functools import partial
torch.compile = partial(torch.compile, backend="eager")
from subquad.patterns import Columns, Local
from subquad.patterns.pattern_attention import flex
q, k, v = torch.randn(3, 2, 2, 200, 16).unbind(0)
pattern = Local(1)
for _ in range(torch._dynamo.config.cache_size_limit + 2):
    pattern = pattern | Columns(1)
    mask = flex.whole_mask(pattern, 200, q.device)
    flex.compiled(pattern, q.dtype, True)(q, k, v, mask)
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


@pytest.mark.slow
def test_inductor_lowers_draws_blocks_and_heads_to_two_graphs_at_most_for_six_lengths():
    run_apart(LOWERED, *map(repr, (PATTERNS[13], PATTERNS[14], PATTERNS[-1])))


@pytest.mark.slow
def test_gradients_are_those_of_the_pairs_in_two_graphs_at_most_whatever_stands_in_padding():
    if not hasattr(flex_attention, "_validate_device"):
        pytest.skip("this torch refuses gradients on the CPU elsewhere")
    run_apart(GRADIENTS, *map(repr, (PATTERNS[13], PATTERNS[14], PATTERNS[-1])))


def test_graphs_are_explained_as_uncompiled_calls_are_and_refuse_another_backend_than_they_have():
    run_apart(EXPLAINED)


@pytest.mark.slow
def test_each_pattern_has_graphs_of_its_own():
    run_apart(KINDS)
