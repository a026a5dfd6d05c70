"""A backend's numbers beside the definition in float64, which loops over tokens or forms all weights.

Outputs and the gradients of all inputs and weights, with holes and without, at lengths beside those of chunks
and beyond those of segments; the same in a stream of two parts, whose state carries gradients; then single
tokens. Everything is computed twice. Our kernels have to give the same bits; PyTorch's own sums of what was
gathered go by whichever thread comes first on a card, and what varies is noted.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.cuda.contenders import asked, inputs, mechanism, why_refused
from benchmarks.cuda.plan import CARD, Check, Scale, find
from subquad.mechanism import Mechanism
from subquad.ops.backends import Refused

TOKENS = ((1000, True), (321, False))  # and whether there are holes
SHORT_TOKENS = ((65, True), (33, False))  # of a rehearsal
ERRORS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}  # of norms; 5e-4 in float32 would be TF32
SMALLEST = 1e-3  # of the largest norm of a gradient: smaller ones are held against that
CHOOSE = ("reformer", "routing")  # rounding decides some of their choices otherwise
WRONG_CHOICES = 0.02  # of the tokens
REPEATS = "triton"  # the backend whose kernels add up in an order of their own
SINGLE = 4  # tokens at the end of a stream that come one by one

Named = dict[str, Tensor]
Attend = Callable[..., Tensor]


class Numbers(TypedDict):
    """`errors`: the largest of each result, of norms. `wrong`: what is off or must not vary, and does.

    `varies`: what differs between two calls, within the errors.
    `unstreamed`: why the backend takes no streams, where there are some.
    """

    errors: dict[str, float]
    wrong: list[str]
    varies: list[str]
    unstreamed: str


class Refusal(TypedDict):
    refused: str


def numbers(check: Check, scale: Scale) -> Numbers | Refusal:
    scale = replace(scale, width=check.width * scale.width // CARD.width)
    errors: dict[str, float] = {}
    changing: set[str] = set()
    unstreamed = ""
    for tokens, holes in TOKENS if scale.shrink == 1 else SHORT_TOKENS:
        try:
            found, again, expected, unstreamed = computed(check, tokens, holes=holes, scale=scale)
        except Refused as error:
            return Refusal(refused=why_refused(error))
        least = SMALLEST * max(y.norm().item() for name, y in expected.items() if name.startswith("gradient"))
        for name, x in found.items():
            error = distance(x, expected[name], least, choose=find(check.work).attention in CHOOSE)
            errors[name] = max(error, errors.get(name, 0.0))
            if not torch.equal(x, again[name]):
                changing.add(name)
    limit = ERRORS[check.dtype]
    off = [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= limit]
    varies = sorted(changing)
    if check.backend == REPEATS:
        off += [f"{name} differs between two calls" for name in varies]
    finite = {name: error for name, error in errors.items() if math.isfinite(error)}
    return Numbers(errors=finite, wrong=off, varies=varies, unstreamed=unstreamed)


def computed(check: Check, tokens: int, *, holes: bool, scale: Scale) -> tuple[Named, Named, Named, str]:
    """By the backend, twice, and by the definition; and why there is no stream, where one might be."""
    work = find(check.work)
    dtype = getattr(torch, check.dtype)
    ours = mechanism(work, tokens, scale=scale, dtype=dtype)
    tensors = inputs(ours, tokens, scale=scale, dtype=dtype)
    exact = copy.deepcopy(ours).double()
    valid = None
    if holes:
        generator = torch.Generator(scale.device).manual_seed(1)
        valid = torch.rand(scale.batch, tokens, generator=generator, device=scale.device) < 0.7
        valid[-1, : tokens // 2] = False
    streams, unstreamed = ours.traits.state == "bounded" and ours.causal, ""

    def streamed() -> Named:
        halves = passes(ours, in_two(ours), tensors, valid)
        single = token_by_token(ours, tensors, valid)
        return {f"{name} of a stream": x for name, x in halves.items()} | {"single tokens": single}

    with asked(check.backend):
        found, again = (passes(ours, ours.forward, tensors, valid) for _ in range(2))
        if streams:
            try:
                found, again = (results | streamed() for results in (found, again))
            except Refused as error:
                unstreamed = why_refused(error)
    expected = passes(exact, exact.definition, {name: x.double() for name, x in tensors.items()}, valid)
    if streams:
        expected |= {f"{name} of a stream": x for name, x in expected.items()}
        expected["single tokens"] = expected["outputs"][:, :, -SINGLE:]
    return found, again, expected, unstreamed


def passes(of: Mechanism, attend: Attend, tensors: Named, valid: Tensor | None) -> Named:
    """Outputs at real tokens, and the gradients of all that is learnt."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out = attend(**leaves, valid=valid)
    if valid is not None:
        out = out.masked_fill(~valid[:, None, :, None], 0)
    generator = torch.Generator(out.device).manual_seed(2)
    weights = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
    learnt = leaves | {name: p for name, p in of.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        out, list(learnt.values()), weights, allow_unused=True, materialize_grads=True
    )
    named = {f"gradient of {name}": x for name, x in zip(learnt, gradients, strict=True)}
    return {"outputs": out.detach(), **named}


def in_two(of: Mechanism) -> Attend:
    """The stream of a sequence's first third, and of the rest after it."""

    def attend(*, valid: Tensor | None, **tensors: Tensor) -> Tensor:
        tokens = next(iter(tensors.values())).shape[2]
        outs, state = [], None
        for part in (slice(None, tokens // 3), slice(tokens // 3, None)):
            chunk = {name: x[:, :, part] for name, x in tensors.items()}
            out, state = of.step(**chunk, valid=None if valid is None else valid[:, part], state=state)
            outs.append(out)
        return torch.cat(outs, 2)

    return attend


@torch.no_grad()
def token_by_token(of: Mechanism, tensors: Named, valid: Tensor | None) -> Tensor:
    """The last tokens of a stream, at real ones."""
    start = next(iter(tensors.values())).shape[2] - SINGLE
    outs, state = [], None
    for part in (slice(None, start), *(slice(start + n, start + n + 1) for n in range(SINGLE))):
        seen = None if valid is None else valid[:, part]
        chunk = {name: x[:, :, part] for name, x in tensors.items()}
        out, state = of.step(**chunk, valid=seen, state=state)
        outs.append(out if seen is None else out.masked_fill(~seen[:, None, :, None], 0))
    return torch.cat(outs[1:], 2)


def distance(x: Tensor, y: Tensor, least: float, *, choose: bool) -> float:
    """Of norms; of all but a few tokens, where rounding chooses keys."""
    x, errors = x.double(), (x.double() - y).norm(dim=-1).flatten()
    if not x.isfinite().all():
        return math.inf
    if choose:
        errors = errors.sort().values[: math.ceil((1 - WRONG_CHOICES) * len(errors))]
    return (errors.norm() / max(y.norm().item(), least)).item()
