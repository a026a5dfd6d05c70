"""That padding is invisible, wherever it is and whatever it holds."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    CHUNKS,
    LENGTH,
    Tensors,
    assert_close,
    each_form,
    fill,
    gradients,
    leaves,
    padding_masks,
    random_inputs,
    stream,
)


def check_padding_is_invisible(cls: type[Mechanism]) -> None:
    """Real tokens give the outputs and gradients they give without the padding, even if that is NaN."""
    for mechanism in each_form(cls):
        for where, valid in padding_masks().items():
            inputs = fill(random_inputs(mechanism, requires_grad=True), valid, math.nan)
            expected = without_padding(mechanism, inputs, valid)
            outputs = {"forward": mechanism(**inputs, valid=valid)}
            if cls.traits.state is not None and mechanism.causal:
                outputs["step"], _ = stream(mechanism, inputs, CHUNKS[0], valid=valid)
            for form, out in outputs.items():
                label = f"padding {where}, {form}: ".__add__
                real = out.masked_fill(~valid[:, None, :, None], 0)
                assert_close(real, expected, msg=label)
                targets = leaves(mechanism, inputs)
                assert_close(gradients(real, targets), gradients(expected, targets), msg=label)


def without_padding(mechanism: Mechanism, inputs: Tensors, valid: Bool[Tensor, "b s"]) -> Tensor:
    """Each row by itself with its padding taken out, and zeros put back in its place."""
    rows = []
    for b, keep in enumerate(valid):
        alone = mechanism(**{name: x[b : b + 1, :, keep] for name, x in inputs.items()})
        places = torch.zeros(1, alone.shape[1], LENGTH, alone.shape[3], dtype=alone.dtype)
        index = keep.nonzero().reshape(1, 1, -1, 1).expand(alone.shape)
        rows.append(places.scatter(2, index, alone))
    return torch.cat(rows)


def check_all_padding_gives_zeros(cls: type[Mechanism]) -> None:
    """A row that is all padding gives zeros and finite gradients, and leaves the next row alone."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        valid = torch.ones(2, LENGTH, dtype=torch.bool)
        valid[1] = False
        out = mechanism(**inputs, valid=valid)
        assert not out[1].any(), f"up to {out[1].abs().max():.2g} where there is no key"
        for name, gradient in gradients(out, leaves(mechanism, inputs)).items():
            assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert_close(out[:1], mechanism(**{name: x[:1] for name, x in inputs.items()}))
