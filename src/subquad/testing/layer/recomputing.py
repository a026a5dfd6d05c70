"""That activations which are made anew are the ones that were, and that none are kept."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from subquad.nn.layers.layer import Layer
from subquad.nn.sequence import make_sequence
from subquad.testing.layer.cases import Network, build_network, cases, random_tokens, real_tokens, targets_of
from subquad.testing.mechanism.cases import assert_close, gradients, padding_masks

HALVED = ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True))  # and autocast
A_ROUNDING = 2**-8  # of bfloat16


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


def check_gradients_hold_in_half_precision(cls: type[Layer]) -> None:
    """In half precision and under autocast they are within a rounding of the plain ones, of eight layers."""
    valid = padding_masks()["anywhere"]
    for case in cases(cls):
        for dtype, autocast in HALVED:
            network = build_network(cls, case, depth=8).to(dtype)
            x = random_tokens().to(dtype).requires_grad_()
            sequence, _ = make_sequence(x, valid=valid)
            results = []
            for run in (cls.run, cls.run_plain):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    out = real_tokens(run(network.members(), sequence))
                found = gradients(out, targets_of(network, x)).values()
                results.append(torch.cat([gradient.double().flatten() for gradient in found]))
            error = ((results[0] - results[1]).norm() / results[1].norm()).item()
            where = f"{dtype}{' under autocast' if autocast else ''}"
            assert error < A_ROUNDING, f"{case}: gradients in {where} are {error:.2g} off"


def check_frozen_weights(cls: type[Layer]) -> None:
    """Where the weights of a layer, or every other weight, are frozen, the rest learns what it learnt."""
    for case in cases(cls):
        network = build_network(cls, case, depth=3)
        x = random_tokens(requires_grad=True)
        targets = targets_of(network, x)
        expected = gradients(real_tokens(network(x)), targets)
        for frozen in ([*network.layers[1].parameters()], [*network.parameters()][::2]):
            network.requires_grad_()
            for parameter in frozen:
                parameter.requires_grad_(False)
            learning = {name: target for name, target in targets.items() if target.requires_grad}
            found = gradients(real_tokens(network(x)), learning)
            assert_close(found, {name: expected[name] for name in learning}, msg=f"{case}: ".__add__)


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
