"""That a layer is what its traits say, and refuses what they rule out."""

import inspect
from functools import partial

import torch

from subquad.nn.layers.layer import Layer, LayerConfig, claims
from subquad.testing.layer.cases import (
    CONFIG,
    build_network,
    cases,
    random_tokens,
    real_tokens,
    targets_of,
)
from subquad.testing.mechanism.cases import LENGTH, gradients, padding_masks


def check_layer_signature(cls: type[Layer]) -> None:
    """It is built from a config and keyword-only scalars with defaults."""
    _, *chosen = inspect.signature(cls).parameters.values()
    for option in chosen:
        assert option.kind is option.KEYWORD_ONLY, f"option {option.name!r} must be keyword-only"
        scalar = isinstance(option.default, bool | int | float | str)
        assert scalar, f"option {option.name!r} needs a scalar default, not {option.default!r}"


def check_rejects_forms_it_has_not(cls: type[Layer]) -> None:
    """A form that the traits rule out, and a stream of what has none, is a ValueError with a message."""
    for chosen in cls.traits.checked:
        claimed = claims(cls, chosen)
        for causal in (True, False):
            if not (claimed.causal if causal else claimed.bidirectional):
                config = LayerConfig(**{**CONFIG, "causal": causal})
                assert_refused(f"built with causal={causal}", partial(cls, config, **chosen))
    for case in cases(cls):
        if case.claims.state is None or not case.causal:
            network = build_network(cls, case)
            assert_refused(f"streamed ({case})", partial(network.step, random_tokens()))


def check_sequences_come_out(cls: type[Layer]) -> None:
    """Values keep width and dtype, and their number where that is claimed; positions count what is real."""
    for case in cases(cls):
        network = build_network(cls, case)
        for valid in (None, *padding_masks().values()):
            out = network(random_tokens(), valid)
            batch, length, width = out.values.shape
            assert (batch, width) == (2, CONFIG["dim"]), f"{case}: values of shape {tuple(out.values.shape)}"
            assert out.values.dtype == torch.float64, f"{case}: float64 in, {out.values.dtype} out"
            assert out.valid is None or out.valid.shape == (batch, length), f"{case}: another mask"
            assert length == LENGTH or not cls.keeps_length, f"{case}: {LENGTH} tokens in, {length} out"
            real = torch.ones(2, length, dtype=torch.bool) if out.valid is None else out.valid
            positions = out.positions.expand(2, -1)
            for row in range(2):
                expected = torch.arange(int(real[row].sum()))
                assert torch.equal(positions[row, real[row]], expected), f"{case}: positions do not count"


def check_gradients_reach_all(cls: type[Layer]) -> None:
    """Every input and every parameter gets a finite gradient, not all zero."""
    for case in cases(cls):
        x = random_tokens(requires_grad=True)
        network = build_network(cls, case)
        for name, gradient in gradients(real_tokens(network(x)), targets_of(network, x)).items():
            assert gradient.isfinite().all(), f"{case}: the gradient of {name} is not finite"
            assert gradient.any(), f"{case}: the gradient of {name} is zero"


def assert_refused(what: str, attempt: partial[object]) -> None:
    """That it is a `ValueError` with a message."""
    message = None
    try:
        attempt()
    except ValueError as error:
        message = str(error)
    assert message is not None, f"{what}: it did not raise"
    assert message, f"{what}: the error has no message"
