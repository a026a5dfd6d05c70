"""The compiled kernels: the same numbers as PyTorch's operators, and not there where not wanted."""

import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import subquad
from subquad.ops import linear_tiles
from subquad.ops.kernel_sums import ShiftedSums
from subquad.ops.native import build, library, usable
from subquad.ops.native import linear as kernels
from subquad.ops.native.linear import Map
from subquad.registry import catalog
from subquad.testing import contract
from subquad.testing.mechanism.cases import precision

needs_kernels = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])
SIZES = [
    (2, 3, 200, 24, 40, 20),
    (1, 1, 700, 64, 96, 64),
    (2, 2, 65, 5, 7, 3),
    (1, 2, 1, 8, 8, 8),
    (1, 2, 0, 4, 4, 4),
]
UNDER_FLOAT32 = [  # one at least for each kernel
    *("linear", "performer", "glu-1", "hedgehog", "local", "longformer", "bigbird", "sparse-transformer"),
    *("star", "reformer", "routing", "retention", "gated-linear", "delta", "gated-delta"),
]
# float64 says nothing of them, or they only name the other precisions
ELSEWHERE = {"check_half_precision", "check_limit_is_softmax", "check_flop_growth", "check_memory_growth"}


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    W: Tensor | None

    def single(self) -> "Inputs":
        return Inputs(
            self.q.float(), self.k.float(), self.v.float(), None if self.W is None else self.W.float()
        )

    def of(self, dtype: torch.dtype) -> "Inputs":
        q, k, v = (x.to(dtype) for x in self[:3])
        return Inputs(q, k, v, self.W)

    def tokens(self, start: int, end: int) -> "Inputs":
        q, k, v = (x[:, :, start:end] for x in self[:3])
        return Inputs(q, k, v, self.W)

    def hidden(self, valid: Tensor | None) -> "Inputs":
        if valid is None:
            return self
        q, k, v = (x.masked_fill(~valid[:, None, :, None], 0) for x in self[:3])
        return Inputs(q, k, v, self.W)


def drawn(sizes, map: Map, *, seed=0) -> Inputs:
    """Inputs as projections leave them, not contiguous."""
    b, h, t, d, f, e = sizes
    generator = torch.Generator().manual_seed(seed)
    width = f if map in (Map.GIVEN, Map.LOGS) else d

    def normal(width):
        return torch.randn(b, t, h, width, generator=generator, dtype=torch.float64).transpose(1, 2)

    q, k, v = normal(width), normal(width), normal(e)
    if map == Map.GIVEN:
        q, k = q.abs(), k.abs()
    W = torch.randn(f, d, generator=generator, dtype=torch.float64) * d**-0.25
    return Inputs(q, k, v, W if map == Map.FAVOR else None)


def masks(b, t):
    anywhere = torch.rand(b, t, generator=torch.Generator().manual_seed(1)) < 0.6
    anywhere[:, :3] = False
    return [None, anywhere]


def run(x: Inputs, valid: Tensor | None = None, *, map: Map, causal: bool, before: ShiftedSums | None = None):
    found = kernels.forward(x.q, x.k, x.v, x.W, valid, map=map, causal=causal, before=before)
    assert found is not None
    return found


def run_back(grad, x: Inputs, valid: Tensor | None, found, *, map: Map, causal: bool):
    out, den, sums = found
    return kernels.backward(
        grad, x.q, x.k, x.v, x.W, valid, out, den, None if causal else sums, map=map, causal=causal
    )


@needs_kernels
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("map", Map)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kernels_give_the_numbers_of_the_operators(sizes, map, causal):
    for valid in masks(sizes[0], sizes[2]):
        x = drawn(sizes, map).hidden(valid)
        out, den, sums = linear_tiles.forward(x.q, x.k, x.v, x.W, valid, map=map, causal=causal)
        found = run(x.single(), valid, map=map, causal=causal)
        assert_close(found[0], out.float(), rtol=1e-4, atol=1e-5)
        assert_close(found[2].S, sums.S.float(), rtol=1e-4, atol=1e-4)  # sums of hundreds
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        exact = linear_tiles.backward(grad, x.q, x.k, x.v, x.W, valid, out, den, sums, map=map, causal=causal)
        ours = run_back(grad.float(), x.single(), valid, found, map=map, causal=causal)
        for one, other in zip(ours, exact, strict=True):
            assert_close(one, other.float(), rtol=1e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("map", Map)
def test_kernels_go_on_from_a_state(map):
    x = drawn((2, 2, 150, 8, 16, 8), map).single()
    whole = run(x, map=map, causal=True)
    outputs, sums = [], None
    for start, end in ((0, 70), (70, 71), (71, 150)):
        out, _, sums = run(x.tokens(start, end), map=map, causal=True, before=sums)
        outputs.append(out)
    assert_close(torch.cat(outputs, 2), whole[0], rtol=1e-4, atol=1e-5)
    assert_close(sums, whole[2], rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("map", Map)
def test_steps_of_a_few_tokens_are_the_sequence(map):
    for valid in masks(2, 40):
        x = drawn((2, 3, 40, 12, 20, 9), map)
        out, *_ = linear_tiles.forward(x.q, x.k, x.v, x.W, valid, map=map, causal=True)
        outputs, sums = [], None
        for start, end in ((0, 1), (1, 1), (1, 4), (4, 12), (12, 13), (13, 40)):
            here, part = None if valid is None else valid[:, start:end], x.single().tokens(start, end)
            found = kernels.step(part.q, part.k, part.v, part.W, here, map=map, before=sums)
            assert found is not None
            outputs.append(found[0])
            sums = found[1]
        assert_close(torch.cat(outputs, 2), out.float(), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("map", Map)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_half_precision_is_widened_and_rounded_and_nothing_else(sizes, map, dtype):
    grad = torch.randn(*sizes[:3], sizes[5], generator=torch.Generator().manual_seed(2)).to(dtype)
    for valid in masks(sizes[0], sizes[2]):
        narrow = drawn(sizes, map).hidden(valid).single().of(dtype)
        same = narrow.of(torch.float32)
        for causal in (False, True):
            found, wanted = (run(x, valid, map=map, causal=causal) for x in (narrow, same))
            assert_close(found, (wanted[0].to(dtype), *wanted[1:]))
            kept = (found[0].float(), *found[1:])
            found = run_back(grad, narrow, valid, found, map=map, causal=causal)
            wanted = run_back(grad.float(), same, valid, kept, map=map, causal=causal)
            assert_close(found, tuple(x.to(dtype) for x in wanted))
        a_few = valid if valid is None else valid[:, :4]
        found, wanted = (
            kernels.step(x.q, x.k, x.v, x.W, a_few, map=map, before=None)
            for x in (narrow.tokens(0, 4), same.tokens(0, 4))
        )
        assert found is not None
        assert wanted is not None
        assert_close(found, (wanted[0].to(dtype), wanted[1]))


@needs_kernels
@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_is_split_among_threads_that_have_no_other(causal, monkeypatch):
    x, grad, results = drawn((1, 1, 1500, 8, 16, 8), Map.FAVOR).single(), torch.ones(1, 1, 1500, 8), []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        found = run(x, map=Map.FAVOR, causal=causal)
        results.append((found[0], *run_back(grad, x, None, found, map=Map.FAVOR, causal=causal)))
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("map", [Map.GIVEN, Map.ELU])
def test_what_is_not_a_number_is_not_hidden(map):
    x = drawn((1, 1, 20, 4, 4, 4), map).single()
    x.q[0, 0, 7] = torch.nan
    out = run(x, map=map, causal=True)[0]
    assert out[0, 0, 7].isnan().all()
    assert out[0, 0, :7].isfinite().all()


@needs_kernels
def test_a_prefix_that_later_keys_would_drown_is_told():
    q = torch.ones(1, 1, 64, 4)
    k = torch.ones(1, 1, 64, 4)
    k[:, :, 40:] = 120  # log features of the first tokens fall some hundred below these
    v = torch.ones(1, 1, 64, 4)
    assert kernels.forward(q, k, v, None, None, map=Map.LOGS, causal=True, before=None) is None


@needs_kernels
@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name in UNDER_FLOAT32
        for check in contract(catalog()[name])
        if check.__name__ not in ELSEWHERE and not hasattr(check, "slow")
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("check_"),
)
def test_the_contract_holds_on_the_kernels(name, check):
    with precision(torch.float32):
        check(catalog()[name])


def test_the_environment_switches_the_kernels_off(monkeypatch):
    monkeypatch.setenv("SUBQUAD_NATIVE", "0")
    assert subquad.backend() == ("torch", "SUBQUAD_NATIVE=0 switches the kernels off")
    assert not usable(torch.zeros(1))


@needs_kernels
def test_kernels_are_for_float32_on_the_cpu():
    assert subquad.backend().name == "native"
    assert usable(torch.zeros(1), None)
    assert not usable(torch.zeros(1), torch.zeros(1).double())
    assert not usable(torch.zeros(1, device="meta"))


def test_without_a_library_the_operators_do_it(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert library.find()[0] is None
    assert "no kernels were compiled" in library.find()[1]


@needs_kernels
def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(build, "digest", lambda: 0)
    found, why = library.find()
    assert found is None
    assert "is of other sources" in why


def test_without_a_compiler_the_build_says_so_in_a_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler \\(no-such-compiler\\)"):
        build.build()
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build()
