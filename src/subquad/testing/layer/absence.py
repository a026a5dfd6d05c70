"""That padding counts as absent, rows know nothing of one another, and nothing at all is no crash."""

import math

import torch

from subquad.nn.layers.layer import Layer
from subquad.testing.layer.cases import build_network, cases, random_tokens, real_tokens, targets_of
from subquad.testing.mechanism.cases import LENGTH, assert_close, gradients, padding_masks


def check_padding_is_absent(cls: type[Layer]) -> None:
    """Real tokens give the outputs and gradients they give without the padding, even if that is NaN."""
    for case in cases(cls):
        network = build_network(cls, case)
        for where, valid in padding_masks().items():
            label = f"{case}, padding {where}: ".__add__
            x = random_tokens().masked_fill(~valid[..., None], math.nan).requires_grad_()
            rows = [real_tokens(network(row[real][None])) for row, real in zip(x, valid, strict=True)]
            out, expected = real_tokens(network(x, valid)), torch.cat(rows)
            assert_close(out, expected, msg=label)
            targets = targets_of(network, x)
            assert_close(gradients(out, targets), gradients(expected, targets), msg=label)


def check_rows_are_independent(cls: type[Layer]) -> None:
    """A row gives the same outputs alone and beside one that is eight times as large."""
    for case in cases(cls):
        network, x = build_network(cls, case), random_tokens()
        alone = network(x[:1]).values
        assert_close(network(torch.cat([x[:1], 8 * x[1:]])).values[:1], alone, msg=f"{case}: ".__add__)


def check_rows_of_padding(cls: type[Layer]) -> None:
    """A row that is all padding has finite gradients, and leaves the next row alone."""
    for case in cases(cls):
        network, x = build_network(cls, case), random_tokens(requires_grad=True)
        valid = torch.ones(2, LENGTH, dtype=torch.bool)
        valid[1] = False
        out = network(x, valid)
        assert_close(out.values[:1], network(x[:1]).values, msg=f"{case}: ".__add__)
        for name, gradient in gradients(out.values, targets_of(network, x)).items():
            assert gradient.isfinite().all(), f"{case}: the gradient of {name} is not finite"


def check_nothing_at_all(cls: type[Layer]) -> None:
    """No rows, and rows of no tokens, give finite outputs and a gradient for every parameter."""
    for case in cases(cls):
        network = build_network(cls, case)
        for batch, length in ((0, LENGTH), (2, 0), (2, 1)):
            for valid in (None, torch.zeros(batch, length, dtype=torch.bool)):
                what = f"{case}: {batch} rows of {length} tokens, with{'out' if valid is None else ''} a mask"
                try:
                    out = network(random_tokens(batch=batch, length=length), valid).values
                except Exception as error:
                    raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
                assert out.isfinite().all(), f"{what}: not finite"
                names, parameters = zip(*network.named_parameters(), strict=True)
                found = torch.autograd.grad(out.sum(), parameters, allow_unused=True)
                for name, gradient in zip(names, found, strict=True):
                    assert gradient is not None, f"{what}: the gradient of {name} never comes"
                    assert gradient.isfinite().all(), f"{what}: the gradient of {name} is not finite"
