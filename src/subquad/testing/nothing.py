"""That of no rows, no queries or no keys comes nothing: no crash, and nothing that is not finite."""

import torch

from subquad.mechanism import Mechanism
from subquad.testing.cases import LENGTH, each_form, gradients, leaves, random_inputs
from subquad.testing.refusals import calls


def check_no_rows(cls: type[Mechanism]) -> None:
    """A batch of no sequences gives no outputs and gradients of zero, with a mask and without."""
    check_nothing(cls, batch=0)


def check_no_tokens(cls: type[Mechanism]) -> None:
    """Sequences of no tokens give no outputs and gradients of zero, with a mask and without."""
    check_nothing(cls, length=0)


def check_nothing_to_see(cls: type[Mechanism]) -> None:
    """In cross-attention no queries get nothing, and queries of no keys zeros."""
    check_nothing(cls, queries=0)
    check_nothing(cls, length=0, queries=5)


def check_nothing(
    cls: type[Mechanism], *, batch: int = 2, length: int = LENGTH, queries: int | None = None
) -> None:
    told = f"of {batch} rows, {length if queries is None else queries} queries and {length} keys"
    for mechanism in each_form(cls):
        if queries is not None and mechanism.causal:
            continue
        inputs = random_inputs(mechanism, batch=batch, length=length, queries=queries, requires_grad=True)
        wanted = (*inputs["q"].shape[:3], inputs["v"].shape[3])
        for valid in (None, *(torch.full((batch, length), real) for real in (True, False))):
            for form in calls(mechanism):
                what = f"{form.__name__} {told}, with{'out' if valid is None else ''} a mask"
                try:
                    out = form(**inputs, valid=valid)
                    if form.__name__ == "step":
                        out, _ = form(**inputs, valid=valid, state=out[1])
                except Exception as error:
                    raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
                assert out.shape == wanted, f"{what}: shape {tuple(out.shape)}, not {tuple(wanted)}"
                assert not out.any(), f"{what}: outputs that are not zero"
                if form.__name__ != "definition":
                    assert out.requires_grad, f"{what}: nothing to go back through"
                    for name, gradient in gradients(out, leaves(mechanism, inputs)).items():
                        assert not gradient.any(), f"{what}: the gradient of {name} is not zero"
                assert mechanism.penalty().isfinite(), f"{what}: penalty {mechanism.penalty()}"
