"""Features are made some tokens at a time: what comes out, and what is kept for the backward pass."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from subquad import Dims, build
from subquad.mechanisms import kernel
from subquad.ops.shared import scan

DIMS = Dims(heads=2, head_dim=4, max_len=64)
CASES = [
    ("glu-1", {}),
    ("hedgehog", {}),
    ("taylor", {"width": 4}),
    ("cosformer", {}),
    ("spectral", {"features": 6}),
    ("performer", {"map": "trigonometric", "features": 6}),
    ("performer", {"map": "relu", "features": 5}),
]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(scan, "FEATURE_BLOCK", 8)
    monkeypatch.setattr(kernel, "MAX_SAVED", 0)


def tokens(count, *, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, count, 4, dtype=dtype, generator=generator) for _ in range(3)]


def made(name, options, *, causal, dtype):
    torch.manual_seed(0)
    return build(name, DIMS, causal=causal, **options).to(dtype)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_give_the_definition_and_its_gradients(name, options, padded):
    mechanism = made(name, options, causal=False, dtype=torch.float64)
    valid = torch.rand(2, 27, generator=torch.Generator().manual_seed(1)) < 0.6 if padded else None
    found = []
    for attend in (mechanism, mechanism.definition):
        inputs = [x.requires_grad_() for x in tokens(27, dtype=torch.float64)]
        out = attend(*inputs, valid=valid)
        out = out if valid is None else out * valid[:, None, :, None]
        learnt = [x for x in mechanism.parameters() if x.requires_grad]
        found.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *learnt])])
    for ours, expected in zip(*found, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_without_gradients_blocks_give_the_same(name, options, causal):
    mechanism = made(name, options, causal=causal, dtype=torch.float32)
    q, k, v = tokens(27, dtype=torch.float32)
    with torch.no_grad():
        assert_close(mechanism(q, k, v), mechanism.definition(q, k, v), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES[1:])  # there are no more features of GLU than inputs
def test_nothing_is_made_that_is_larger_than_the_inputs(name, options):
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    mechanism = made(name, options, causal=False, dtype=torch.float32)
    q, k, v = tokens(64, dtype=torch.float32)
    with torch.no_grad(), Watch() as watch:
        mechanism(q, k, v)
    assert watch.largest == q.numel()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_features_are_kept_for_the_backward_pass(name, options):
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    mechanism = made(name, options, causal=False, dtype=torch.float32)
    q, k, v = (x.requires_grad_() for x in tokens(64, dtype=torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        mechanism(q, k, v)
    assert sum(kept) < 4 * q.numel()  # the inputs, and little more
