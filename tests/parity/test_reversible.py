"""Reversible blocks beside those of `reformer-pytorch`, which run any two functions."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.nn.layers.layer import LayerConfig
from subquad.nn.layers.reversible import ReversibleBlock
from subquad.nn.sequence import make_sequence

theirs_module = pytest.importorskip("reformer_pytorch.reversible")


class Part(nn.Module):
    """What one of our blocks adds, as a function of tokens alone."""

    def __init__(self, block: ReversibleBlock, name: str) -> None:
        super().__init__()
        self.block, self.name = block, name

    def forward(self, x):
        return getattr(self.block, self.name)(x, make_sequence(x)[0])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_reformer_pytorch(dropout):
    torch.manual_seed(0)
    config = LayerConfig(dim=8, heads=2, dropout=dropout)
    blocks = [ReversibleBlock(config, inside="linear").double() for _ in range(3)]
    theirs = theirs_module.ReversibleSequence(
        nn.ModuleList(nn.ModuleList([Part(b, "of_tokens"), Part(b, "of_token")]) for b in blocks)
    )
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    x = torch.randn(2, 24, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 24, 8, dtype=torch.float64)

    torch.manual_seed(1)
    ours = ReversibleBlock.run(list(blocks), make_sequence(x)[0]).values
    gradients = torch.autograd.grad((ours * weight).sum(), [x, *parameters])

    torch.manual_seed(1)
    expected = theirs(torch.cat([x, x], -1)).unflatten(-1, (2, 8)).mean(-2)
    (expected * weight).sum().backward()  # theirs writes gradients into the parameters
    assert_close(ours, expected)
    assert_close(list(gradients), [x.grad, *(parameter.grad for parameter in parameters)])
