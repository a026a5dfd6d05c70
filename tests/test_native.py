"""The compiled kernels: the same numbers as PyTorch's operators, and not there where not wanted."""

import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import subquad
from subquad.ops.linear_attention import BACKENDS, FeatureKind, LinearCall, reference
from subquad.ops.linear_attention import cpu as kernels
from subquad.ops.native import build, library
from subquad.registry import catalog
from subquad.testing import contract
from subquad.testing.mechanism.cases import precision

needs_kernels = pytest.mark.skipif(library.load_library()[0] is None, reason=library.load_library()[1])
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


def drawn(sizes, kind: FeatureKind, *, seed=0) -> Inputs:
    """Inputs as projections leave them, not contiguous."""
    b, h, t, d, f, e = sizes
    generator = torch.Generator().manual_seed(seed)
    width = f if kind in (FeatureKind.FEATURES, FeatureKind.LOGS) else d

    def normal(width):
        return torch.randn(b, t, h, width, generator=generator, dtype=torch.float64).transpose(1, 2)

    q, k, v = normal(width), normal(width), normal(e)
    if kind == FeatureKind.FEATURES:
        q, k = q.abs(), k.abs()
    W = torch.randn(f, d, generator=generator, dtype=torch.float64) * d**-0.25
    return Inputs(q, k, v, W if kind == FeatureKind.FAVOR else None)


def masks(b, t):
    anywhere = torch.rand(b, t, generator=torch.Generator().manual_seed(1)) < 0.6
    anywhere[:, :3] = False
    return [None, anywhere]


def of(x: Inputs, valid: Tensor | None = None, *, kind: FeatureKind, causal: bool, before=None) -> LinearCall:
    return LinearCall(x.q, x.k, x.v, x.W, valid, kind, causal, before)


def run(call: LinearCall):
    result = kernels.forward(call)
    assert result is not None
    return result


def step(call: LinearCall):
    result = kernels.step(call)
    assert result is not None
    return result


@needs_kernels
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", FeatureKind)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kernels_give_the_numbers_of_the_operators(sizes, kind, causal):
    for valid in masks(sizes[0], sizes[2]):
        x = drawn(sizes, kind).hidden(valid)
        exact, single = (of(y, valid, kind=kind, causal=causal) for y in (x, x.single()))
        wanted, result = reference.forward(exact), run(single)
        assert_close(result.out, wanted.out.float(), rtol=1e-4, atol=1e-5)
        assert_close(result.sums.S, wanted.sums.S.float(), rtol=1e-4, atol=1e-4)  # sums of hundreds
        grad = torch.randn(wanted.out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        gradients = kernels.backward(grad.float(), single, result)
        for one, other in zip(gradients, reference.backward(grad, exact, wanted), strict=True):
            assert_close(one, other.float(), rtol=1e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("kind", FeatureKind)
def test_kernels_go_on_from_a_state(kind):
    x = drawn((2, 2, 150, 8, 16, 8), kind).single()
    whole = run(of(x, kind=kind, causal=True))
    outputs, sums = [], None
    for start, end in ((0, 70), (70, 71), (71, 150)):
        out, _, sums, _ = run(of(x.tokens(start, end), kind=kind, causal=True, before=sums))
        outputs.append(out)
    assert_close(torch.cat(outputs, 2), whole.out, rtol=1e-4, atol=1e-5)
    assert_close(sums, whole.sums, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", FeatureKind)
def test_steps_of_a_few_tokens_are_the_sequence(kind):
    for valid in masks(2, 40):
        x = drawn((2, 3, 40, 12, 20, 9), kind)
        out = reference.forward(of(x, valid, kind=kind, causal=True)).out
        outputs, sums = [], None
        for start, end in ((0, 1), (1, 1), (1, 4), (4, 12), (12, 13), (13, 40)):
            here, part = None if valid is None else valid[:, start:end], x.single().tokens(start, end)
            part_out, sums = step(of(part, here, kind=kind, causal=True, before=sums))
            outputs.append(part_out)
        assert_close(torch.cat(outputs, 2), out.float(), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", FeatureKind)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_half_precision_is_widened_and_rounded_and_nothing_else(sizes, kind, dtype):
    grad = torch.randn(*sizes[:3], sizes[5], generator=torch.Generator().manual_seed(2)).to(dtype)
    for valid in masks(sizes[0], sizes[2]):
        narrow = drawn(sizes, kind).hidden(valid).single().of(dtype)
        same = narrow.of(torch.float32)
        for causal in (False, True):
            ours, theirs = (of(x, valid, kind=kind, causal=causal) for x in (narrow, same))
            result, wanted = run(ours), run(theirs)
            assert_close(result, wanted._replace(out=wanted.out.to(dtype)))
            gradients = kernels.backward(grad, ours, result)
            wanted = kernels.backward(grad.float(), theirs, result._replace(out=result.out.float()))
            assert_close(gradients, tuple(x.to(dtype) for x in wanted))
        a_few = valid if valid is None else valid[:, :4]
        result, wanted = (step(of(x.tokens(0, 4), a_few, kind=kind, causal=True)) for x in (narrow, same))
        assert_close(result, (wanted[0].to(dtype), wanted[1]))


@needs_kernels
@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_is_split_among_threads_that_have_no_other(causal, monkeypatch):
    x, grad, results = (
        drawn((1, 1, 1500, 8, 16, 8), FeatureKind.FAVOR).single(),
        torch.ones(1, 1, 1500, 8),
        [],
    )
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        call = of(x, kind=FeatureKind.FAVOR, causal=causal)
        result = run(call)
        results.append((result.out, *kernels.backward(grad, call, result)))
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", [FeatureKind.FEATURES, FeatureKind.ELU])
def test_nan_inputs_give_nan_outputs(kind):
    x = drawn((1, 1, 20, 4, 4, 4), kind).single()
    x.q[0, 0, 7] = torch.nan
    out = run(of(x, kind=kind, causal=True)).out
    assert out[0, 0, 7].isnan().all()
    assert out[0, 0, :7].isfinite().all()


@needs_kernels
def test_a_prefix_that_later_keys_would_drown_is_detected():
    q = torch.ones(1, 1, 64, 4)
    k = torch.ones(1, 1, 64, 4)
    k[:, :, 40:] = 120  # log features of the first tokens fall some hundred below these
    v = torch.ones(1, 1, 64, 4)
    call = LinearCall(q, k, v, None, None, FeatureKind.LOGS, True)
    assert kernels.forward(call) is None
    assert BACKENDS.run("forward", call)[1].chunk == 8


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
    assert library.load_library.__wrapped__() == (None, "SUBQUAD_NATIVE=0 switches the kernels off")


@needs_kernels
def test_kernels_are_for_float32_on_the_cpu():
    assert subquad.backend().name == "native"
    assert library.why_not_float32(torch.zeros(1), None) is None
    assert "not torch.float64" in str(library.why_not_float32(torch.zeros(1), torch.zeros(1).double()))
    assert "on meta" in str(library.why_not_half(torch.zeros(1, device="meta")))


def test_without_a_library_the_operators_do_it(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert library.find_library()[0] is None
    assert "no kernels were compiled" in library.find_library()[1]


@needs_kernels
def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(build, "digest", lambda: 0)
    found, why = library.find_library()
    assert found is None
    assert "is of other sources" in why


def test_without_a_compiler_the_build_says_so_in_a_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler \\(no-such-compiler\\)"):
        build.build_kernels()
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build_kernels()
