"""What tests of Triton kernels share, in the interpreter and on cards: inputs, and what they must give."""

import torch

from subquad.ops.backends import using
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
