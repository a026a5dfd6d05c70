"""Derivatives of every kind through the layer, and on the compiled kernels, which float64 does not reach."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from subquad import MultiheadAttention, catalog
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.transforms import lasting
from subquad.ops.window_attention import window_op
from subquad.testing.mechanism import transforms
from subquad.testing.mechanism.cases import precision

KERNELS = ("linear", "performer", "local", "bigbird", "reformer", "retention", "delta")  # one of each kernel


def layer(name, **options):
    causal = not catalog()[name].traits.bidirectional
    return MultiheadAttention(16, 2, name, causal=causal, **options)


def loss(subject):
    def of(x):
        x = x[None]
        return subject(x, x, x)[0].square().sum()

    return of


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "check",
    [
        transforms.check_forward_mode_derivatives,
        transforms.check_per_sample_gradients,
        transforms.check_transforms_leak_nothing,
    ],
    ids=lambda check: check.__name__,
)
def test_compiled_kernels_see_no_transform(name, check):
    with precision(torch.float32):
        check(catalog()[name])


@pytest.mark.parametrize("name", KERNELS)
def test_refusals_name_what_to_do_instead(name):
    subject, x = layer(name), torch.randn(9, 16)
    with pytest.raises(ValueError, match=r"torch\.func\.vjp.*`definition`"):
        torch.func.jvp(loss(subject), (x,), (x,))
    with pytest.raises(ValueError, match=r"create_graph=True.*`definition`"):
        torch.func.grad(lambda x: torch.func.grad(loss(subject))(x).square().sum())(x)


def test_a_compiled_transform_refuses_too():
    def attend(x):
        return call_op(window_op, x, x, x, None, 3, 1)[0]

    x = torch.randn(1, 2, 9, 4)
    tangent = torch.compile(lambda x: torch.func.jvp(attend, (x,), (x,))[1], backend="eager")
    with pytest.raises(ValueError, match="forward mode"):
        tangent(x)


@pytest.mark.parametrize("name", KERNELS)
def test_a_pullback_may_outlive_its_transform(name):
    subject, x = layer(name), torch.randn(9, 16)
    pull = torch.func.vjp(loss(subject), x)[1]
    with torch.no_grad():
        (found,) = pull(torch.tensor(1.0))
    x.requires_grad_()
    assert_close(found, torch.autograd.grad(loss(subject)(x), x)[0])


@pytest.mark.parametrize("name", KERNELS)
def test_an_ensemble_runs_as_its_members_do(name):
    members, x = [layer(name) for _ in range(3)], torch.randn(2, 9, 16)
    weights, buffers = torch.func.stack_module_state(members)

    def run(weights, buffers):
        return torch.func.functional_call(members[0], (weights, buffers), (x, x, x))[0]

    assert_close(torch.func.vmap(run)(weights, buffers), torch.stack([m(x, x, x)[0] for m in members]))


def test_transforms_nest():
    subject, x = layer("local"), torch.randn(2, 3, 9, 16)
    found = torch.func.vmap(torch.func.vmap(torch.func.grad(loss(subject))))(x)
    x.requires_grad_()
    total = torch.stack([loss(subject)(sample) for sample in x.flatten(0, 1)]).sum()
    assert_close(found, torch.autograd.grad(total, x)[0])


def test_within_matrix_products_softmax_attention_has_second_derivatives():
    subject, x = layer("softmax").double(), torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"SDPBackend\.MATH"):
        torch.autograd.functional.hessian(loss(subject), x)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(loss(subject), x)


def test_what_a_transform_made_is_let_go_when_it_ends():
    kept = []
    torch.func.vmap(lambda x: (kept.append(x.sum()), x)[1])(torch.ones(2, 3))
    assert_close(lasting(kept[0]), torch.zeros(()))
    assert_close(lasting(torch.ones(2)), torch.ones(2))
