"""That activations which are made anew are the ones that were, and that none are kept."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from subquad.nn.layers.layer import Layer
from subquad.nn.sequence import make_sequence
from subquad.testing.layer.cases import Network, build_network, cases, random_tokens, real_tokens, targets_of
from subquad.testing.mechanism.cases import assert_close, gradients, padding_masks


def check_gradients_are_the_plain_ones(cls: type[Layer]) -> None:
    """Outputs and gradients are those of the plain computation, dropout included."""
    valid = padding_masks()["anywhere"]
    for case in cases(cls):
        for dropout in (0.0, 0.3):
            network = build_network(cls, case, depth=3, dropout=dropout).train()
            x = random_tokens(requires_grad=True)
            targets, results = targets_of(network, x), []
            for run in (cls.run, cls.run_plain):
                torch.manual_seed(5)
                sequence, _ = make_sequence(x, valid=valid)
                out = real_tokens(run(network.members(), sequence))
                after = torch.get_rng_state()
                results.append((out, gradients(out, targets)))
                assert torch.equal(torch.get_rng_state(), after), f"{case}: the backward pass draws numbers"
            assert_close(*results, msg=f"{case}, dropout {dropout}: ".__add__)


def check_memory_does_not_grow_with_depth(cls: type[Layer]) -> None:
    """As much is kept for the backward pass of six layers as of two, beside their weights."""
    for case in cases(cls):
        few, many = (kept_bytes(build_network(cls, case, depth=depth, dropout=0.3)) for depth in (2, 6))
        assert few == many, f"{case}: {few} bytes are kept of two layers, {many} of six"


def kept_bytes(network: Network) -> int:
    """What a pass keeps for its backward pass, in bytes, beside the weights."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.nbytes
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        out = network.train()(random_tokens(requires_grad=True)).values
    assert out.requires_grad
    return sum(kept.values())
