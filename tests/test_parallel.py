"""The backends that take all chunks side by side: the numbers of the formulas, in few operations."""

import pytest
import torch
from torch.testing import assert_close

from subquad.measure.memory import peak_bytes
from subquad.ops.backends import backend, using
from subquad.ops.bucket_attention import BucketCall, Visibility, bucket_attention
from subquad.ops.bucket_attention import parallel as parallel_buckets
from subquad.ops.bucket_attention.sorting import Buckets
from subquad.ops.linear_attention import (
    FeatureKind,
    KernelInputs,
    LinearCall,
    linear_attention,
    parallel,
    reference,
    sums,
)
from subquad.ops.recurrence import decay, decayed_product, delta_product
from subquad.ops.shared import fading, segments
from subquad.ops.shared import parallel as shared

B, H, D, E, M = 2, 3, 4, 5, 6
LENGTHS = (1, 3, 4, 5, 41)


@pytest.fixture(params=["one segment", "many segments"])
def cuts(request, monkeypatch):
    """Chunks of 4 tokens, sums in groups of 3 chunks, and segments of all chunks or of one."""
    for module in (sums, parallel):
        monkeypatch.setattr(module, "CHUNK_TOKENS", 4)
    monkeypatch.setattr(decay, "CHUNK", 4)
    monkeypatch.setattr(fading, "GROUP", 3)
    monkeypatch.setattr(segments, "SCRATCH", 2**29 if request.param == "one segment" else 1)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(length):
    """q, k, v, and a mask with holes: of the first row's first tokens, and of all in the last but one."""
    valid = drawn(B, length, seed=3) < 0.8
    valid[0, : length // 3], valid[1, :-1] = False, False
    q, k, v = (drawn(B, H, length, width, seed=n) for n, width in enumerate((D, D, E)))
    return q, k, v, valid


def inputs_of(kind, q, k):
    W = drawn(M, D, seed=4).to(q.dtype) if kind == FeatureKind.FAVOR else None
    return (
        KernelInputs(q.abs(), k.abs(), kind) if kind == FeatureKind.FEATURES else KernelInputs(q, k, kind, W)
    )


def hidden(valid, *inputs):
    return [x.masked_fill(~valid[:, None, :, None], 0) for x in inputs]


def formula(inputs, v, valid, *, causal):
    """Every pair's logarithm of a weight."""
    q, k, kind, W = inputs
    if kind == FeatureKind.ELU:
        q, k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    if kind == FeatureKind.FAVOR:
        q, k = q @ W.mT, k @ W.mT - k.square().sum(-1, keepdim=True) / (2 * D**0.5)
    if not kind.exponential:
        q, k = q.log(), k.log()
    weights = (q[:, :, :, None] + k[:, :, None]).logsumexp(-1)
    seen = valid[:, None, None].expand_as(weights)
    seen = seen.tril() if causal else seen
    top = weights.detach().masked_fill(~seen, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e30)
    weights = (weights - top).masked_fill(~seen, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1)


def gradients(function, *inputs):
    """Outputs, and gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outs = function(*leaves)
    weights = [drawn(*x.shape, seed=9 + n).to(x.dtype) for n, x in enumerate(outs)]
    return [*outs, *torch.autograd.grad(outs, leaves, weights)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", FeatureKind)
def test_averages_and_their_gradients_are_those_of_the_formula(kind, causal, length, cuts):
    *qkv, valid = tokens(length)

    def averages(q, k, v):
        k, v = hidden(valid, k, v)
        return [linear_attention(inputs_of(kind, q, k), v, valid=valid, causal=causal)]

    with using("parallel"):
        found = gradients(averages, *qkv)
    expected = gradients(lambda q, k, v: [formula(inputs_of(kind, q, k), v, valid, causal=causal)], *qkv)
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [FeatureKind.ELU, FeatureKind.FAVOR])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_are_those_of_finite_differences(kind, causal, cuts):
    *qkv, valid = tokens(11)

    def averages(q, k, v):
        k, v = hidden(valid, k, v)
        return linear_attention(inputs_of(kind, q, k), v, valid=valid, causal=causal)

    with using("parallel"):
        assert torch.autograd.gradcheck(averages, [x.requires_grad_() for x in qkv], fast_mode=True)


@pytest.mark.parametrize("causal", [True, False])
def test_large_exponents_and_later_keys_that_drown_earlier_ones_cost_no_digits(causal):
    q, k, v = (drawn(1, 2, 300, width, seed=n) for n, width in enumerate((16, 16, 8)))
    q, k = 4 * q, 4 * k
    k[:, :, 150:] *= 6
    W, valid = drawn(32, 16, seed=4) / 16**0.25, torch.ones(1, 300, dtype=torch.bool)

    def favor(q, k, v):
        out = linear_attention(KernelInputs(q, k, FeatureKind.FAVOR, W.to(q)), v, valid=None, causal=causal)
        return [out]

    with using("parallel"):
        exact, found = gradients(favor, q, k, v), gradients(favor, *(x.float() for x in (q, k, v)))
    logs = KernelInputs(q @ W.mT, k @ W.mT - k.square().sum(-1, keepdim=True) / 8, FeatureKind.LOGS)
    assert_close(exact[0], formula(logs, v, valid, causal=causal))
    for x, y in zip(found, exact, strict=True):
        assert (x - y).norm() < 2e-4 * y.norm()


@pytest.mark.parametrize("kind", FeatureKind)
def test_a_stream_and_its_gradients_are_those_of_the_reference_at_every_cut(kind, cuts):
    *qkv, valid = tokens(41)

    def stream(*x, backend):
        q, k, v = x[0], *hidden(valid, *x[1:])
        outs, before = [], None
        for here in (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 41)):
            part = inputs_of(kind, q[:, :, here], k[:, :, here])
            call = LinearCall(part.q, part.k, v[:, :, here], part.W, valid[:, here], kind, True, before)
            out, before = backend.step(call)
            outs.append(out)
        return [torch.cat(outs, 2), *before[:2]]

    found, expected = (
        gradients(lambda *x: stream(*x, backend=one), *qkv)  # noqa: B023
        for one in (parallel, reference)
    )
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, rtol=1e-9, atol=1e-9)


RULES = ("one decay", "one decay for all tokens", "decay by channel", "delta", "delta by channel")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", RULES)
def test_recurrences_and_their_gradients_are_those_of_the_reference(rule, length, cuts):
    q, k, v, _ = tokens(length)
    k, state = torch.nn.functional.normalize(k, dim=-1), drawn(B, H, D, E, seed=5)
    log_decay = -drawn(1, H, length, D if "by channel" in rule else 1, seed=6).square()
    log_decay[:, 0, length // 2] = -300
    if rule == "one decay for all tokens":
        log_decay = log_decay[:, :, :1].expand(-1, -1, length, -1)
    beta = drawn(B, H, length, 1, seed=7).sigmoid()

    def recur(q, k, v, log_decay, state, beta):
        if "delta" in rule:
            return delta_product(q, k, v, beta, log_decay, state=state)
        out, last = decayed_product(q, k, v, log_decay, state=state)
        return out, last + 0 * beta.sum()

    both = []
    for one in ("parallel", "reference"):
        with using(one):
            both.append(gradients(recur, q, k, v, log_decay, state, beta))
    for x, y in zip(*both, strict=True):
        assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_a_cpu_takes_it_only_if_asked():
    q, k, v, _ = tokens(5)

    def call():
        return linear_attention(KernelInputs(q, k, FeatureKind.ELU), v, valid=None, causal=True)

    with torch.no_grad():
        (choice,) = backend(call)
        assert choice.backend == "reference"
        assert "using('parallel')" in choice.refusals["parallel"]
        with using("parallel"):
            (choice,) = backend(call)
        assert choice.backend == "parallel"


@pytest.mark.parametrize("kind", [FeatureKind.ELU, FeatureKind.FAVOR])
def test_memory_beside_inputs_and_results_is_that_of_a_segment(kind, monkeypatch):
    monkeypatch.setattr(segments, "SCRATCH", 2**18)
    W = drawn(32, 16, seed=4).float() if kind == FeatureKind.FAVOR else None

    def training(q, k, v):
        with using("parallel"):
            out = linear_attention(KernelInputs(q, k, kind, W), v, valid=None, causal=True)
            torch.autograd.grad(out.sum(), (q, k, v))

    def peak(length):
        q, k, v = (torch.randn(1, 1, length, 16, requires_grad=True) for _ in range(3))
        return peak_bytes(training, q=q, k=k, v=v)

    short, long = peak(2048), peak(8192)
    results = 6144 * 4 * (16 + 1 + 16 + 3 * 16)  # outputs, denominators and the gradients of all
    assert long - short < 1.1 * results


def bucketed(heads, length, *, dtype=torch.float32, size=16, rounds=3):
    """q, k and v, and the order and labels of some buckets."""
    q, k, v = (drawn(1, heads, length, 16, seed=n).to(dtype) for n in range(3))
    bucket = (drawn(1, heads, rounds, length, seed=3).abs() * length / size).long()
    buckets = Buckets.of(bucket, size=size)
    return q, k, v, buckets.order, 2 * bucket + buckets.place // size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_buckets_read_half_precision_and_sum_in_float32(dtype):
    q, k, v, order, labels = bucketed(2, 100, dtype=dtype)
    call = BucketCall(q, k, v, order, labels.int(), Visibility(16, True, False, True, False))
    exact = call._replace(q=q.double(), k=k.double(), v=v.double())
    grad = drawn(1, 2, 100, 16, seed=4).to(dtype)
    both = []
    for one in (call, exact):
        result = parallel_buckets.forward(one)
        both.append((*result, *parallel_buckets.backward(grad.to(one.v.dtype), one, result)))
    assert [x.dtype for x in both[0]] == [dtype, torch.float32, dtype, dtype, dtype]
    for x, y in zip(*both, strict=True):
        assert (x - y).norm() < 2 * torch.finfo(dtype).eps * y.norm()


def test_memory_of_buckets_beside_inputs_and_results_is_that_of_a_few_heads(monkeypatch):
    monkeypatch.setattr(shared, "MAX_NUMBERS", 2**17)

    def training(q, k, v, order, labels):
        with using("parallel"):
            out = bucket_attention(q, k, v, order=order, labels=labels, size=16)
            torch.autograd.grad(out.sum(), (q, k, v))

    def peak(heads):
        names = ("q", "k", "v", "order", "labels")
        inputs = dict(zip(names, bucketed(heads, 512), strict=True))
        return peak_bytes(training, **{n: x.requires_grad_() if n in "qkv" else x for n, x in inputs.items()})

    few, many = peak(4), peak(16)
    results = 12 * 512 * 4 * (16 + 1 + 16 + 3 * 16 + 1 + 3)  # of all kinds, labels in 32 bits among them
    assert many - few < 1.1 * results
