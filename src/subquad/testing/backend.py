"""The contract of a backend: the numbers of the reference, forward and back, for all that it does not refuse.

    from subquad.testing.backend import certify_backend

    certify_backend("linear_attention", "mine")

Trials are small and odd: masks with holes, rows of padding only, lengths beside those of chunks, states, in
float32 and half precision. What is expected comes from the reference in float64, from the same numbers.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.ops.backends import Refused, using
from subquad.ops.bucket_attention import bucket_attention
from subquad.ops.bucket_attention.sorting import Buckets
from subquad.ops.linear_attention import FeatureKind, KernelInputs, advance, linear_attention
from subquad.ops.recurrence import decayed_product, delta_product
from subquad.ops.recurrence.rows import Fusion
from subquad.ops.shared.precision import NARROW, widened
from subquad.ops.tile_attention import Tiling, tile_attention
from subquad.ops.window_attention import window_attention
from subquad.patterns import CAUSAL, Blocks, Columns, Global, Local, PerHead, Random, Strided, attend

B, H, D, E = 2, 3, 8, 6
LENGTHS = (0, 1, 65)
STREAM = 130
RULES = ("one decay", "decay by channel", "delta", "delta by channel")  # of recurrences
TRIAL_DTYPES = (torch.float32, *NARROW)

Function = Callable[..., tuple[Tensor, ...]]


class Trial(NamedTuple):
    """A call of an operator: `function` of tensors that are all in one dtype and all learnt."""

    name: str
    function: Function
    inputs: tuple[Tensor, ...]
    gradients: bool = True


class Outcome(NamedTuple):
    """A trial that a backend passed, or did not take."""

    trial: str
    dtype: torch.dtype
    refusal: str | None


def certify_backend(operator: str, backend: str, *, device: str = "cpu") -> list[Outcome]:
    """Hold a backend against the reference; `AssertionError` where numbers differ, or where it takes nothing.

    `operator` is named as its folder, `backend` as in `using`.
    """
    if operator not in TRIALS:
        raise ValueError(f"no trials for operator {operator!r}; there are some for {', '.join(TRIALS)}")
    outcomes = [
        Outcome(trial.name, dtype, refusal(trial, backend, dtype=dtype, device=device))
        for trial in TRIALS[operator]()
        for dtype in TRIAL_DTYPES
    ]
    refusals = {outcome.refusal for outcome in outcomes}
    assert None in refusals, f"{backend!r} refuses every trial of {operator}: {refusals}"
    return outcomes


def refusal(trial: Trial, backend: str, *, dtype: torch.dtype, device: str) -> str | None:
    """Why the backend does not take the trial; `None` where it gives the numbers of the reference."""
    narrow = tuple(x.to(device, dtype) for x in trial.inputs)
    try:
        with using(backend):
            actual = results(trial, narrow)
    except Refused as error:
        return error.reasons[backend]
    with using("reference"):
        expected = results(trial, tuple(x.double() for x in narrow))
    rounding = 1e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    least = (
        0.5  # what cancels, as gradients of a single token do, is as exact as its terms, some of which are 3
    )
    for n, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        try:
            assert_close(ours.double(), theirs, rtol=rounding, atol=rounding * max(largest, least))
        except AssertionError as error:
            raise AssertionError(f"{backend!r} in {dtype}, {trial.name}, result {n}: {error}") from error
    return None


def results(trial: Trial, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs without gradients and, where the trial has some, outputs with them and gradients."""
    with torch.no_grad():
        alone = trial.function(*inputs)
    if not trial.gradients:
        return alone
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    outputs = trial.function(*leaves)
    weights = [drawn(*x.shape, seed=9 + n).to(x) for n, x in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return (*alone, *(x.detach() for x in outputs), *gradients)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(length: int, *, widths: tuple[int, int] = (D, E)) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as projections leave them, not contiguous."""
    d, e = widths
    q, k, v = (drawn(B, length, H, width, seed=n) for n, width in enumerate((d, d, e)))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def masks(length: int) -> Iterator[tuple[str, Tensor | None]]:
    yield "no padding", None
    holes = drawn(B, length, seed=5) < 0.3
    holes[1] = False
    yield "holes", holes


def linear_trials() -> Iterator[Trial]:
    W = drawn(2 * D, D, seed=6) * D**-0.25
    for kind, length, causal in product(FeatureKind, LENGTHS, (True, False)):
        for mask, valid in masks(length):
            yield Trial(
                f"{kind.name}, {length} tokens, {'causal' if causal else 'bidirectional'}, {mask}",
                linear(kind, W, valid, causal=causal),
                tokens(length),
            )
    for kind in FeatureKind:
        for (mask, valid), in_place in product(masks(STREAM), (False, True)):
            name = f"{kind.name}, a stream{' in place' if in_place else ''}, {mask}"
            yield Trial(name, stream(kind, W, valid, in_place=in_place), tokens(STREAM), False)


def kernel_inputs(kind: FeatureKind, W: Tensor, q: Tensor, k: Tensor) -> KernelInputs:
    if kind == FeatureKind.FAVOR:
        return KernelInputs(q, k, kind, W.to(q.device, widened(q.dtype)))
    return KernelInputs(q.abs(), k.abs(), kind) if kind == FeatureKind.FEATURES else KernelInputs(q, k, kind)


def zero_padding(valid: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    if valid is None:
        return inputs
    padding = ~valid[:, None, :, None]
    return tuple(x.masked_fill(padding.to(x.device), 0) for x in inputs)


def linear(kind: FeatureKind, W: Tensor, valid: Tensor | None, *, causal: bool) -> Function:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        k, v = zero_padding(valid, k, v)
        seen = None if valid is None else valid.to(q.device)
        return (linear_attention(kernel_inputs(kind, W, q, k), v, valid=seen, causal=causal),)

    return function


def stream(kind: FeatureKind, W: Tensor, valid: Tensor | None, *, in_place: bool) -> Function:
    """In steps of one token, of a few, and of many."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        k, v = zero_padding(valid, k, v)
        outs, sums = [], None
        for start, end in ((0, 1), (1, 1), (1, 4), (4, 80), (80, q.shape[2])):
            part = kernel_inputs(kind, W, q[:, :, start:end], k[:, :, start:end])
            seen = None if valid is None else valid[:, start:end].to(q.device)
            values = v[:, :, start:end]
            out, sums = advance(part, values, valid=seen, before=sums, in_place=in_place)
            outs.append(out)
        return (torch.cat(outs, 2),)

    return function


def recurrence_trials() -> Iterator[Trial]:
    around = {
        "plain": Fusion(),
        "normed": Fusion(rms_norm_eps=1e-5),
        "of length one": Fusion(qk_l2norm_eps=1e-6, swish_values=True, rms_norm_eps=1e-5),
    }
    for rule, length in product(RULES, LENGTHS):
        for name, fusion in around.items():
            q, k, v = tokens(length)
            decay = -drawn(B, H, length, D if "by channel" in rule else 1, seed=3).square()
            beta, state = drawn(B, H, length, 1, seed=4), drawn(B, H, D, E, seed=5)
            learnt = (q, F.normalize(k, dim=-1), v, decay, beta, state, 1 + 0.1 * drawn(E, seed=7))
            inputs = (*learnt, drawn(B, H, length, E, seed=8))
            yield Trial(f"{rule}, {length} tokens, {name}", recurrence(rule, fusion), inputs)


def recurrence(rule: str, fusion: Fusion) -> Function:
    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        q, k, v, decay, beta, state, scale, gate = inputs
        wide = widened(q.dtype)
        whole = fusion._replace(scale=scale.to(wide), gate=gate) if fusion.rms_norm_eps else fusion
        if "delta" in rule:
            return delta_product(q, k, v, beta.sigmoid(), decay, state=state.to(wide), fusion=whole)
        return decayed_product(q, k, v, decay, state=state.to(wide), fusion=whole)

    return function


def window_trials() -> Iterator[Trial]:
    for (left, right), length in product(((0, 0), (15, 0), (3, 9), (200, 200)), LENGTHS[1:]):
        for lengths in (None, torch.tensor([length, length // 2])):

            def function(q: Tensor, k: Tensor, v: Tensor, left=left, right=right, lengths=lengths):
                row_lengths = None if lengths is None else lengths.to(q.device)
                out, lse = window_attention(q, k, v, left=left, right=right, lengths=row_lengths)
                return out, lse.masked_fill(lse == -torch.inf, 0)

            what = "no padding" if lengths is None else "padding"
            yield Trial(
                f"{left} to the left, {right} to the right, {length} tokens, {what}", function, tokens(length)
            )


def tile_trials() -> Iterator[Trial]:
    width, unit = 10, 5
    for length in LENGTHS[2:]:
        count = -(-length // width)
        places = torch.arange(2 * count).view(1, count, 2)
        keys = torch.cat([places, places - 4], -1)  # some of them before the first token
        seen = drawn(1, count, width, 4 * unit, seed=6) < 0.5

        def function(q: Tensor, k: Tensor, v: Tensor, keys=keys, seen=seen) -> tuple[Tensor, ...]:
            tiling = Tiling(None, keys.to(q.device), seen.to(q.device), width, unit)
            return (tile_attention(q, k, v, [tiling]),)

        yield Trial(f"{length} tokens", function, tokens(length))


def pattern_trials() -> Iterator[Trial]:
    patterns = (
        Local(20) & CAUSAL,
        Local(9) | Columns(2),
        Blocks(Local(1) | Global(1, last=1) | Random(2), 16),
        (Strided(16) | Random(3)) & CAUSAL,
        PerHead(Local(5), Strided(8), Global(2) & CAUSAL),
    )
    for pattern, length in product(patterns, (1, 200)):
        for mask, valid in masks(length):

            def function(q: Tensor, k: Tensor, v: Tensor, pattern=pattern, valid=valid):
                real = None if valid is None else valid.to(q.device)
                return (attend(pattern, q, k, v, valid=real),)

            yield Trial(f"{pattern}, {length} tokens, {mask}", function, tokens(length, widths=(32, 16)))


def bucket_trials() -> Iterator[Trial]:
    flags = ("causal", "last_n_only", "count_duplicates")
    for length, on in product(LENGTHS[1:], ((), *((flag,) for flag in flags), flags)):
        generator = torch.Generator().manual_seed(4)
        bucket = torch.randint(0, max(1, length // 8), (B, H, 2, length), generator=generator)
        buckets = Buckets.of(bucket, size=8)
        labels = 2 * bucket + buckets.place // 8

        def function(q: Tensor, k: Tensor, v: Tensor, order=buckets.order, labels=labels, on=on):
            places = {"order": order.to(q.device), "labels": labels.to(q.device)}
            options: dict[str, Any] = {**places, **dict.fromkeys(on, True)}
            return (bucket_attention(q, k, v, size=8, **options),)

        yield Trial(f"{length} tokens, {', '.join(on) or 'plain'}", function, tokens(length))


TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {
    "linear_attention": linear_trials,
    "recurrence": recurrence_trials,
    "window_attention": window_trials,
    "tile_attention": tile_trials,
    "pattern_attention": pattern_trials,
    "bucket_attention": bucket_trials,
}
