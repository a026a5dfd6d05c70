"""That the fast form computes the paper's formula."""

import torch
from torch.nn import functional as F

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    LENGTH,
    assert_close,
    each_form,
    forms,
    gradients,
    leaves,
    make,
    padding_masks,
    random_inputs,
)


def check_shapes_and_dtypes(cls: type[Mechanism]) -> None:
    """One output per query, as wide as a value, in the inputs' dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for mechanism in each_form(cls):
            inputs = random_inputs(mechanism, dtype=dtype)
            out = mechanism.to(dtype)(**inputs)
            shape = (*inputs["q"].shape[:3], inputs["v"].shape[3])
            assert out.shape == shape, f"shape {tuple(out.shape)}, not {tuple(shape)}"
            assert out.dtype == dtype, f"{dtype} in, {out.dtype} out"


def check_matches_definition(cls: type[Mechanism]) -> None:
    """The fast form gives the outputs and gradients of the formula, with and without padding."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        for valid in (None, padding_masks()["anywhere"]):
            fast, exact = mechanism(**inputs, valid=valid), mechanism.definition(**inputs, valid=valid)
            real = (valid if valid is not None else torch.ones(2, LENGTH, dtype=torch.bool))[:, None, :, None]
            fast, exact = fast.masked_fill(~real, 0), exact.masked_fill(~real, 0)
            assert_close(fast, exact)
            targets = leaves(mechanism, inputs)
            assert_close(gradients(fast, targets), gradients(exact, targets))


def check_ties_match_definition(cls: type[Mechanism]) -> None:
    """Among equal tokens, zeros included, the fast form chooses the same ones as the formula.

    All but values are multiples of a half and small, so that their products are exact and tie in both forms.
    """
    tokens = torch.randint(4, (LENGTH,), generator=torch.Generator().manual_seed(5))
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        for name in inputs.keys() - {"v"}:
            distinct = (2 * inputs[name][:, :, :4]).round() / 2
            distinct[:, :, 0] = 0
            inputs[name] = distinct[:, :, tokens]
        for valid in (None, padding_masks()["anywhere"]):
            fast, exact = mechanism(**inputs, valid=valid), mechanism.definition(**inputs, valid=valid)
            padding = torch.zeros(2, LENGTH, dtype=torch.bool) if valid is None else ~valid
            fast, exact = (x.masked_fill(padding[:, None, :, None], 0) for x in (fast, exact))
            assert_close(fast, exact)


def check_gradients_reach_everything(cls: type[Mechanism]) -> None:
    """Every input and every parameter gets a finite gradient, not all zero."""
    for mechanism in each_form(cls):
        targets = leaves(mechanism, random_inputs(mechanism, requires_grad=True))
        out = mechanism(**{name: targets[name] for name in mechanism.projections()})
        for name, gradient in gradients(out + 0 * mechanism.penalty(), targets).items():
            assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
            assert gradient.any(), f"the gradient of {name} is zero"


def check_no_unused_parameters(cls: type[Mechanism]) -> None:
    """Every parameter gets a finite gradient, zero or not, even where there is nothing to attend to.

    Data-parallel training waits for all of them, and hangs where one never comes.
    """
    for mechanism in each_form(cls):
        for length in (0, 1, LENGTH):
            inputs = random_inputs(mechanism, length=length, requires_grad=True)
            for valid in (None, torch.zeros(2, length, dtype=torch.bool)):
                out = mechanism(**inputs, valid=valid)
                for name, parameter in mechanism.named_parameters():
                    tokens = "tokens" if valid is None else "tokens of padding"
                    label = f"{length} {tokens}: the gradient of {name} "
                    (grad,) = torch.autograd.grad(out.sum(), parameter, retain_graph=True, allow_unused=True)
                    assert grad is not None, label + "never comes"
                    assert grad.isfinite().all(), label + "is not finite"


def check_batch_invariance(cls: type[Mechanism]) -> None:
    """An example gives the same outputs alone and in a batch with one that is eight times as large."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism)
        alone = mechanism(**{name: x[:1] for name, x in inputs.items()})
        assert_close(mechanism(**inputs)[:1], alone)
        batch = {name: torch.cat([x[:1], 8 * x[1:]]) for name, x in inputs.items()}
        assert_close(mechanism(**batch)[:1], alone)


def check_cross_attention(cls: type[Mechanism]) -> None:
    """Queries of another sequence, more or fewer than the keys, match the formula."""
    mechanism = make(cls, causal=False)
    for queries in (5, LENGTH, LENGTH + 7):
        inputs = random_inputs(mechanism, queries=queries)
        for valid in (None, padding_masks()["anywhere"]):
            assert_close(mechanism(**inputs, valid=valid), mechanism.definition(**inputs, valid=valid))


def check_weights_sum_to_one(cls: type[Mechanism]) -> None:
    """If all values are the same, so is every output; large queries and keys do not change that."""
    for mechanism in each_form(cls):
        for scale in (1, 10):
            inputs = {name: scale * x for name, x in random_inputs(mechanism).items()}
            values = {name: torch.ones_like(x) for name, x in inputs.items() if name.startswith("v")}
            assert_close(mechanism(**{**inputs, **values}), values["v"])


def check_limit_is_softmax(cls: type[Mechanism]) -> None:
    """With the options of its `limit` trait it is softmax attention, up to `limit_tol`.

    The error is in units of uniform attention's, so that tolerances mean the same for every mechanism, and an
    approximation that sees nothing has an error of one.
    """
    for causal in forms(cls):
        mechanism = make(cls, causal=causal, **dict(cls.traits.limit or {}))
        inputs = {name: x / 2 for name, x in random_inputs(mechanism).items()}
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        exact = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        uniform = F.scaled_dot_product_attention(0 * q, k, v, is_causal=causal)
        error = ((mechanism(**inputs) - exact).norm() / (uniform - exact).norm()).item()
        assert error <= cls.traits.limit_tol, (
            f"relative error {error:.2g}, claimed {cls.traits.limit_tol:.2g}"
        )
