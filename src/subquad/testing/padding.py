"""That padding is invisible, wherever it stands and whatever stands in it."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.mechanism import Mechanism
from subquad.testing.cases import (
    CHUNKS,
    LENGTH,
    Inputs,
    assert_close,
    each_form,
    fill,
    gradients,
    holes,
    leaves,
    random_inputs,
    stream,
)


def check_padding_is_invisible(cls: type[Mechanism]) -> None:
    """Real tokens come out as if padding were not there, even if it is NaN, with the same gradients."""
    for mechanism in each_form(cls):
        for where, valid in holes().items():
            inputs = fill(random_inputs(mechanism, requires_grad=True), valid, math.nan)
            expected = without_padding(mechanism, inputs, valid)
            found = {"forward": mechanism(**inputs, valid=valid)}
            if cls.traits.state is not None and mechanism.causal:
                found["step"] = stream(mechanism, inputs, CHUNKS[0], valid=valid)
            for form, out in found.items():
                told = f"padding {where}, {form}: ".__add__
                real = out.masked_fill(~valid[:, None, :, None], 0)
                assert_close(real, expected, msg=told)
                wanted = leaves(mechanism, inputs)
                assert_close(gradients(real, wanted), gradients(expected, wanted), msg=told)


def without_padding(mechanism: Mechanism, inputs: Inputs, valid: Bool[Tensor, "b s"]) -> Tensor:
    """Each row by itself with its padding taken out, and zeros put back in its place."""
    rows = []
    for b, keep in enumerate(valid):
        alone = mechanism(**{name: x[b : b + 1, :, keep] for name, x in inputs.items()})
        places = torch.zeros(1, alone.shape[1], LENGTH, alone.shape[3], dtype=alone.dtype)
        index = keep.nonzero().reshape(1, 1, -1, 1).expand(alone.shape)
        rows.append(places.scatter(2, index, alone))
    return torch.cat(rows)


def check_a_row_of_padding_gives_zeros(cls: type[Mechanism]) -> None:
    """A query that sees no key gives zeros and finite gradients, and leaves the next row alone."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        valid = torch.ones(2, LENGTH, dtype=torch.bool)
        valid[1] = False
        out = mechanism(**inputs, valid=valid)
        assert not out[1].any(), f"up to {out[1].abs().max():.2g} where there is no key"
        for name, gradient in gradients(out, leaves(mechanism, inputs)).items():
            assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert_close(out[:1], mechanism(**{name: x[:1] for name, x in inputs.items()}))
