"""What the next token of a stream costs, beside torch's fused attention over a cache of all tokens so far."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.measure.cost import LIMIT, OURS, REFERENCE, built_layers, find_dtype, mean, mean_timing
from subquad.measure.memory import MB
from subquad.measure.timing import interleaved
from subquad.mechanism import Dims


@torch.inference_mode()
def stream_cost(
    *,
    attention: str,
    options: Mapping[str, Any],
    length: int,
    heads: int,
    head_dim: int,
    batch: int,
    dtype: str = "float32",
    seconds: float = 1.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time of one token behind `length` others, and the size of the state that stands for them.

    A bounded state is stepped in place, over and over. A growing one is made anew with each token, as `step`
    does without `reserve`. The reference, which is fused attention of one query over `length` keys, adds
    none to its cache. The result has

    step     milliseconds, "ms" and "reference_ms", each as a `Timing`
    state    10 ** 6 bytes, "mb" and "reference_mb"

    Of a mixture by layer both are means over its layers.

    Raises `ValueError` for what cannot be built or has no `step`.

    attention, options: the mechanism's name and its options; its form is the causal one.
    length, batch: tokens before the one that is timed, and sequences.
    heads, head_dim, dtype, seconds, device: as `cost` takes them.
    """
    kind = find_dtype(dtype)
    dims = Dims(heads=heads, head_dim=head_dim, max_len=length + 1)
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int, width: int) -> Tensor:
        return torch.randn(batch, heads, tokens, width, generator=generator).to(device, kind)

    shares: list[float] = []
    sizes: list[float] = []
    steps: dict[str, Callable[[], object]] = {}
    for share, mechanism in built_layers(attention, dims, causal=True, options=options):
        mechanism = mechanism.to(device, kind).eval()
        widths = mechanism.projections()
        _, state = mechanism.step(**{name: normal(length, width) for name, width in widths.items()})
        token = {name: normal(1, width) for name, width in widths.items()}
        bounded = mechanism.traits.state == "bounded"
        steps[f"{OURS} {len(steps)}"] = partial(mechanism.step, **token, state=state, in_place=bounded)
        shares.append(share)
        sizes.append(state_bytes(state) / MB)
    query, *cache = normal(1, head_dim), normal(length, head_dim), normal(length, head_dim)
    timings = interleaved(
        {
            **steps,
            REFERENCE: partial(F.scaled_dot_product_attention, query, *cache),
        },
        seconds=seconds,
        limit=LIMIT * seconds,
        device=device,
    )
    return {
        "step": {
            "ms": asdict(mean_timing([timings[name] for name in steps], shares)),
            "reference_ms": asdict(timings[REFERENCE]),
        },
        "state": {"mb": mean(sizes, shares), "reference_mb": state_bytes(cache) / MB},
    }


def state_bytes(state: Any) -> int:
    """Bytes of a state's tensors."""
    return state.nbytes if isinstance(state, Tensor) else sum(map(state_bytes, state))
