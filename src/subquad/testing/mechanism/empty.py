"""That empty batches and sequences give empty outputs or zeros: no crash, nothing that is not finite."""

import torch

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import LENGTH, each_form, leaves, random_inputs
from subquad.testing.mechanism.rejections import forms_of


def check_empty_batch(cls: type[Mechanism]) -> None:
    """A batch of no sequences gives no outputs and gradients of zero, with a mask and without."""
    check_empty(cls, batch=0)


def check_empty_sequence(cls: type[Mechanism]) -> None:
    """Sequences of no tokens give no outputs and gradients of zero, with a mask and without."""
    check_empty(cls, length=0)


def check_empty_cross_attention(cls: type[Mechanism]) -> None:
    """In cross-attention no queries give no outputs, and queries without keys give zeros."""
    check_empty(cls, queries=0)
    check_empty(cls, length=0, queries=5)


def check_empty(
    cls: type[Mechanism], *, batch: int = 2, length: int = LENGTH, queries: int | None = None
) -> None:
    label = f"of {batch} rows, {length if queries is None else queries} queries and {length} keys"
    for mechanism in each_form(cls):
        if queries is not None and mechanism.causal:
            continue
        inputs = random_inputs(mechanism, batch=batch, length=length, queries=queries, requires_grad=True)
        shape = (*inputs["q"].shape[:3], inputs["v"].shape[3])
        for valid in (None, *(torch.full((batch, length), real) for real in (True, False))):
            for form in forms_of(mechanism):
                what = f"{form.__name__} {label}, with{'out' if valid is None else ''} a mask"
                try:
                    out = form(**inputs, valid=valid)
                    if form.__name__ == "step":
                        out, _ = form(**inputs, valid=valid, state=out[1])
                except Exception as error:
                    raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
                assert out.shape == shape, f"{what}: shape {tuple(out.shape)}, not {tuple(shape)}"
                assert not out.any(), f"{what}: outputs are not zero"
                if form.__name__ != "definition":
                    assert out.requires_grad, f"{what}: no graph for gradients"
                    targets = leaves(mechanism, inputs)
                    found = torch.autograd.grad(out.sum(), list(targets.values()), allow_unused=True)
                    for name, gradient in zip(targets, found, strict=True):
                        if gradient is None:  # what fills a memory has no use in a step that is given nothing
                            assert form.__name__ == "step", f"{what}: {name} has no part in the graph"
                        else:
                            assert not gradient.any(), f"{what}: the gradient of {name} is not zero"
                assert mechanism.penalty().isfinite(), f"{what}: penalty {mechanism.penalty()}"
