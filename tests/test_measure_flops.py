"""That work is counted, all of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from subquad.measure.flops import count_flops

MODES = (torch.inference_mode, torch.no_grad, torch.enable_grad)
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
Q, K, V = torch.ones(2, 3, 16, 4), torch.ones(2, 3, 20, 4), torch.ones(2, 3, 20, 4)
PRODUCTS = 2 * (2 * 3 * 16 * 20) * (4 + 4)  # of the scores and of the values


@modes
def test_fused_attention_counts_as_its_two_products(mode):
    with mode():
        assert count_flops(F.scaled_dot_product_attention, query=Q, key=K, value=V) == PRODUCTS


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def attend_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attend(q, k, v)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def train(mix: Callable[..., Tensor]) -> None:
    mix(*(x.clone().requires_grad_() for x in (Q, K, V))).sum().backward()


def test_attention_that_insists_on_the_fused_kernel_counts_the_same():
    assert count_flops(attend_fused, q=Q, k=K, v=V) == PRODUCTS


def test_training_fused_attention_counts_as_training_its_two_products():
    assert count_flops(train, mix=attend) == count_flops(train, mix=attend_plainly) == 3 * PRODUCTS


def test_a_fused_backward_that_nobody_can_turn_away_counts_what_it_computes_again():
    assert count_flops(train, mix=attend_fused) == 3 * PRODUCTS + PRODUCTS // 2


@pytest.mark.parametrize(
    ("product", "flops"),
    [
        (lambda: torch.ones(7, 8) @ torch.ones(8), 2 * 7 * 8),
        (lambda: torch.addmv(torch.ones(7), torch.ones(7, 8), torch.ones(8)), 2 * 7 * 8),
        (lambda: torch.ones(8) @ torch.ones(8), 2 * 8),
        (lambda: F.linear(torch.ones(2, 3, 4), torch.ones(5, 4)), 2 * 6 * 4 * 5),
        (lambda: torch.einsum("btd,bsd->bts", torch.ones(2, 3, 4), torch.ones(2, 5, 4)), 2 * 2 * 3 * 5 * 4),
    ],
    ids=["mv", "addmv", "dot", "linear", "einsum"],
)
@modes
def test_products_of_every_rank_count(mode, product, flops):
    with mode():
        assert count_flops(product) == flops


def test_a_product_that_is_added_in_place_counts():
    into = torch.zeros(2, 3, 5)
    assert count_flops(into.baddbmm_, batch1=torch.ones(2, 3, 4), batch2=torch.ones(2, 4, 5)) == 2 * 2 * 60


def test_a_backward_pass_counts():
    left, right = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    assert count_flops(lambda: (left @ right).sum().backward()) == 3 * (2 * 3 * 4 * 5)


def test_modules_inside_may_be_given_leaves():
    layer = torch.nn.Linear(4, 5, bias=False)
    whole = torch.nn.Sequential(layer)
    x = torch.ones(3, 4, requires_grad=True)
    assert count_flops(lambda: torch.autograd.grad(whole(x).sum(), x)) == 2 * 2 * 3 * 4 * 5
