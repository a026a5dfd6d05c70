"""What tests of Triton kernels share, in the interpreter and on cards: inputs, and what they must give."""

import torch

from subquad.ops.backends import using
from subquad.ops.bucket_attention import BucketCall, Visibility, reference, triton
from subquad.ops.bucket_attention.sorting import Buckets
from subquad.ops.linear_attention import FeatureKind, KernelInputs, linear_attention
from subquad.ops.shared.precision import widened

ERRORS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2.5e-2}  # of norms; twice what is seen


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(b, n):
    """Padding anywhere, and the first half of the last row."""
    valid = drawn(b, n, seed=5) < 0.5
    valid[-1, : n // 2] = False
    return valid


def assert_near(found, expected):
    """Each result's norm of errors is a small part of its norm."""
    for n, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert x.isfinite().all(), f"result {n} is not finite"
        error = (x.double() - y).norm() / y.norm().clamp(min=0.1)
        assert error <= ERRORS[x.dtype], f"result {n}: {error:.1e}"


def inputs_of(kind, *, b=2, h=2, queries=75, keys=75, d=24, e=20, features=50):
    """In float64: projections' strides, features positive."""
    widths = (queries, d, 0), (keys, d, 1), (keys, e, 2)
    q, k, v = (drawn(b, n, h, width, seed=seed).transpose(1, 2) for n, width, seed in widths)
    W = drawn(features, d, seed=3) * d**-0.25 if kind == FeatureKind.FAVOR else None
    return (q.abs(), k.abs(), v, W) if kind == FeatureKind.FEATURES else (q, k, v, W)


def results(kind, qkv, W, valid, *, causal):
    """Outputs, and the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    directions = None if W is None else W.to(q.device, widened(q.dtype))
    out = linear_attention(KernelInputs(q, k, kind, directions), v, valid=valid, causal=causal)
    weights = drawn(*out.shape, seed=9).to(out)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), weights))


def compare(kind, inputs, valid, *, causal, dtype=torch.float32, device="cpu"):
    """Kernels on the device with the reference in float64 on the CPU."""
    q, k, v, W = inputs
    narrow = [x.to(dtype) for x in (q, k, v)]
    with using("triton"):
        seen = None if valid is None else valid.to(device)
        found = results(kind, [x.to(device) for x in narrow], W, seen, causal=causal)
    with using("reference"):
        expected = results(kind, [x.double() for x in narrow], W, valid, causal=causal)
    assert_near([x.cpu() for x in found], expected)


def bucket_call(*flags, b=2, h=2, rounds=3, n=75, d=24, e=20, size=16, dtype=torch.float32):
    """Tokens as projections leave them, and buckets of which some are larger than a chunk."""
    widths = (d, 0), (d, 1), (e, 2)
    q, k, v = (drawn(b, n, h, width, seed=seed).transpose(1, 2).to(dtype) for width, seed in widths)
    generator = torch.Generator().manual_seed(0)
    bucket = torch.randint(0, max(1, n // size), (b, h, rounds, n), generator=generator)
    buckets = Buckets.of(bucket, size=size)
    labels = 2 * bucket + buckets.place // size
    return BucketCall(q, k, v, buckets.order, labels.int(), Visibility(min(size, n), *flags))


def bucket_results(backend, call, grad):
    """Outputs and log sums, and the gradients of q, k and v."""
    result = backend.forward(call)
    return (*result, *backend.backward(grad.to(call.v.dtype), call, result))


def moved(call, device):
    """The same on another device."""
    tensors = {name: getattr(call, name) for name in BucketCall._fields[:-1]}
    return call._replace(**{name: x.to(device) for name, x in tensors.items()})


def compare_buckets(call, *, device="cpu"):
    """As `compare`."""
    dtype = call.v.dtype
    grad = drawn(*call.v.mT.shape, seed=9).mT.to(dtype)  # strided, too
    exact = call._replace(q=call.q.double(), k=call.k.double(), v=call.v.double())
    out, lse, *gradients = (x.cpu() for x in bucket_results(triton, moved(call, device), grad.to(device)))
    expected, exact_lse, *slopes = bucket_results(reference, exact, grad)
    assert_near((out, *gradients), (expected, *slopes))
    assert (lse.double() - exact_lse).abs().max() <= ERRORS[dtype]
