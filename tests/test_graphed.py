"""What is one node in graphs is what it is outside of them, with the same gradients."""

import pytest
import torch
from torch.testing import assert_close

from subquad.mechanisms.informer import sparsely
from subquad.mechanisms.routing import by_centroid
from subquad.ops.banded_attention import banded
from subquad.ops.shared.landmarks import Segments, means
from subquad.patterns import CAUSAL, Global, Local, PerHead, Random, Strided
from subquad.patterns.grammar import parse, read_again
from subquad.patterns.pattern_attention import tiles

REAL = torch.tensor([[True] * 11, [True] * 7 + [False] * 4])
COUNT = REAL.sum(1)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def segments():
    cut = Segments.cut(COUNT, landmarks=4, length=11)
    return cut.places, cut.inside


def qkv(length=11, keys=11):
    return normal(2, 3, length, 4), normal(2, 3, keys, 4), normal(2, 3, keys, 5)


CASES = {
    "banded_attention": lambda: (
        banded,
        (*qkv(keys=6), torch.tensor([[1, 3, 5, 7, 9, 10], [1, 3, 5, 6, 2**62, 2**62]]), 2, 4, 3),
    ),
    "segment_means": lambda: (means, (normal(2, 3, 11, 4), *segments())),
    "attention_by_centroid": lambda: (
        by_centroid,
        (*qkv(), normal(2, 3, 11, 4).detach(), normal(2, 3, 11, 4).detach(), REAL, 3),
    ),
    "probsparse": lambda: (sparsely, (*qkv(), COUNT, torch.tensor([3, 5]), 1, True)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_node_is_the_function_and_its_gradients_are_the_functions(name):
    function, given = CASES[name]()
    operator = getattr(torch.ops.subquad, name)
    leaves = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
    out = operator(*given)
    grad = torch.randn_like(out)
    assert_close(out, function(*given))
    assert_close(torch.autograd.grad(out, leaves, grad), torch.autograd.grad(function(*given), leaves, grad))


@pytest.mark.parametrize("name", CASES)
def test_a_node_says_that_it_has_no_second_derivative(name):
    _, given = CASES[name]()
    out = getattr(torch.ops.subquad, name)(*given)
    (grad,) = torch.autograd.grad(out.square().sum(), given[0], create_graph=True)
    with pytest.raises(ValueError, match="no second one"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "pattern",
    [Local(2), Local(1) | Global(1, last=1) | Random(2, seed=10**12), Strided(3) & CAUSAL],
    ids=repr,
)
@pytest.mark.parametrize("n", [None, COUNT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_pattern_in_a_graph_is_the_pattern(pattern, n, dtype):
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in qkv())
    found = tiles.as_node(pattern, q, k, v, n)
    expected = tiles.packed(pattern, q, k, v, n=n)
    assert_close(found, expected)
    grad = torch.ones_like(found)
    near = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}  # the node keeps rounded outputs
    pulled = (torch.autograd.grad(x, (q, k, v), grad) for x in (found, expected))
    assert_close(*pulled, **near)


def test_what_a_pattern_says_of_itself_is_read_again_without_limits():
    heads = PerHead(*(Local(1) | Random(1, seed=10**20 + head) for head in range(150)))
    assert read_again(repr(heads)) == heads
    with pytest.raises(ValueError, match="too many"):
        parse(repr(heads))
