"""Who takes part in a race, ready to be called: subquad by backend, the fused softmax, other packages."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cuda.plan import Scale
from benchmarks.cuda.rivals import attention_like
from benchmarks.cuda.targets import FUSED, OURS, Passes, Work
from subquad.measure.cost import Candidate
from subquad.mechanism import Dims, Mechanism
from subquad.ops.backends import Refused, using
from subquad.registry import build

Call = Callable[[], object]


@dataclass(frozen=True)
class Missing:
    """Why one does not take part."""

    reason: str


Contenders = dict[str, Call | Missing]


def asked(backend: str) -> AbstractContextManager[None]:
    """Within, that one of a work's backends serves."""
    return nullcontext() if backend == OURS else using(backend)


def by_backend(work: Work, prepare: Callable[[], Call]) -> dict[str, Call]:
    """A call for each of the work's backends, by which it runs."""

    def within(backend: str, call: Call) -> Call:
        def run() -> object:
            with asked(backend):
                return call()

        return run

    return {backend: within(backend, prepare()) for backend in work.backends}


def mechanism(work: Work, tokens: int, *, scale: Scale, dtype: torch.dtype = torch.bfloat16) -> Mechanism:
    dims = Dims(heads=scale.heads, head_dim=scale.width, max_len=tokens)
    torch.manual_seed(0)
    made = build(work.attention, dims, causal=work.causal, **work.options)
    return made.to(scale.device, dtype).eval()


def inputs(
    of: Mechanism, tokens: int, *, scale: Scale, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Normal numbers, as projections leave them: the heads of a token side by side."""
    generator = torch.Generator(scale.device).manual_seed(0)

    def drawn(width: int) -> Tensor:
        shape = (scale.batch, tokens, scale.heads, width)
        return torch.randn(shape, generator=generator, device=scale.device).to(dtype).transpose(1, 2)

    return {name: drawn(width) for name, width in of.projections().items()}


def lengths(tokens: int, *, scale: Scale) -> Tensor:
    """The real tokens of each sequence of a padded work."""
    parts = (1, 1 / 2, 7 / 8, 3 / 4)
    real = [max(1, int(tokens * parts[row % len(parts)])) for row in range(scale.batch)]
    return torch.tensor(real, device=scale.device)


def mask(work: Work, tokens: int, *, scale: Scale) -> Tensor | None:
    if not work.padded:
        return None
    return torch.arange(tokens, device=scale.device) < lengths(tokens, scale=scale)[:, None]


def layers(work: Work, passes: Passes, tokens: int, *, scale: Scale) -> Contenders:
    """Mechanisms, forward or with the gradients of inputs and weights."""
    ours = mechanism(work, tokens, scale=scale)
    backward = passes != "forward"
    tensors = {name: x.requires_grad_(backward) for name, x in inputs(ours, tokens, scale=scale).items()}
    weights = tuple(p for p in ours.parameters() if p.requires_grad)

    def ready(mix: Callable[..., Tensor], tensors: Mapping[str, Tensor], *weights: Tensor) -> Call:
        candidate = Candidate(mix, tensors, weights)
        return candidate.forward_backward if backward else candidate.forward

    own = ready(partial(ours, valid=mask(work, tokens, scale=scale)), tensors, *weights)
    qkv = [torch.randn_like(tensors["q"]).requires_grad_(backward) for _ in range(3)]
    fused = partial(F.scaled_dot_product_attention, is_causal=work.causal)
    contenders: Contenders = {**by_backend(work, lambda: own)}
    contenders[FUSED] = ready(fused, dict(zip(("query", "key", "value"), qkv, strict=True)))
    contiguous = {name: x.detach().contiguous().requires_grad_(backward) for name, x in tensors.items()}
    real = lengths(tokens, scale=scale) if work.padded else torch.full((1,), tokens, device=scale.device)
    for rival in work.rivals:
        try:
            contenders[rival] = ready(attention_like(rival, ours, tokens, real), contiguous)
        except Exception as error:  # another package's, whatever it raises
            contenders[rival] = Missing(one_line(error))
    return contenders


def one_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text}"[:200]


def why_refused(error: Refused) -> str:
    """The reason of the backend that was asked for."""
    own = [reason for reason in error.reasons.values() if not reason.startswith("using(")]
    return "; ".join(own) or "there is none of that name"
