"""Backends against the reference, and what that is worth: one that is wrong anywhere is found."""

from types import SimpleNamespace

import pytest
import torch

from subquad.ops.backends import using
from subquad.ops.linear_attention import BACKENDS, FeatureKind, KernelInputs, linear_attention, reference
from subquad.ops.native.library import missing
from subquad.testing.backend import TRIALS, certify_backend


@pytest.mark.parametrize("operator", TRIALS)
def test_the_kernels_give_the_numbers_of_the_reference(operator):
    if reason := missing():
        pytest.skip(reason)
    outcomes = [x for x in certify_backend(operator, "cpu") if x.dtype == torch.float32]
    refused = {x.trial.partition(",")[0] for x in outcomes if x.refusal is not None}
    assert refused == ({"delta by channel"} if operator == "recurrence" else set())


@pytest.mark.parametrize("operator", TRIALS)
def test_the_reference_gives_in_any_precision_what_it_gives_in_float64(operator):
    assert all(outcome.refusal is None for outcome in certify_backend(operator, "reference"))


def test_flex_attention_gives_the_numbers_of_the_reference():
    if not torch.cuda.is_available():
        pytest.skip("FlexAttention serves CUDA, and there is no device")
    certify_backend("pattern_attention", "flex", device="cuda")


@pytest.mark.parametrize("operator", ["linear_attention", "recurrence"])
def test_all_chunks_side_by_side_give_the_numbers_of_the_reference(operator):
    assert all(outcome.refusal is None for outcome in certify_backend(operator, "parallel"))


@pytest.fixture
def backend(monkeypatch):
    """The reference under another name, of which a test may spoil a part."""
    forms = ("refuses", "forward", "step", "backward")
    spoilt = SimpleNamespace(**{form: getattr(reference, form) for form in forms})
    monkeypatch.setattr(BACKENDS, "loaded", [("spoilt", spoilt), ("reference", reference)])
    return spoilt


@pytest.mark.parametrize("form", ["forward", "backward", "step"])
def test_a_backend_that_is_wrong_in_one_form_is_found(form, backend):
    right = getattr(reference, form)

    def wrong(*inputs):
        first, *rest = result = right(*inputs)
        return result._replace(out=1.01 * first) if form == "forward" else (1.01 * first, *rest)

    setattr(backend, form, wrong)
    with pytest.raises(AssertionError, match=r"'spoilt' in torch\.float32"):
        certify_backend("linear_attention", "spoilt")


def test_a_backend_that_refuses_everything_has_no_certificate(backend):
    backend.refuses = lambda call: "it is asleep"
    with pytest.raises(AssertionError, match=r"refuses every trial of linear_attention: .*asleep"):
        certify_backend("linear_attention", "spoilt")


def test_an_operator_without_trials_is_named():
    with pytest.raises(ValueError, match="no trials for operator 'attention'"):
        certify_backend("attention", "cpu")


def test_the_way_back_has_the_backend_of_the_way_forward(backend):
    served = []

    def backward(*inputs):
        served.append("spoilt")
        return reference.backward(*inputs)

    backend.backward = backward
    q, k, v = (torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3))
    inputs = KernelInputs(q, k, FeatureKind.ELU)
    out = linear_attention(inputs, v, valid=None, causal=True)
    with using("reference"):
        assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    assert served == ["spoilt"]
