"""What each mechanism asks a GPU for where Triton does not serve: `python -m benchmarks.launches`.

No GPU is needed, and no time is taken. Heads are 64 wide, in bfloat16, without padding. What the first call
makes for all that follow, such as layouts of patterns, is not counted. The last column is a step in place of
one token, for what streams.
"""

import torch
from torch import Tensor

from subquad import Dims, catalog
from subquad.measure.launches import count_launches
from subquad.mechanism import Mechanism

LENGTHS = (4096, 32768)
BATCH, HEADS, WIDTH = 1, 8, 64
MOST = 2.0  # exponent of work up to which a mechanism is counted


def main() -> None:
    columns = [f"{passes}, {length:,}" for length in LENGTHS for passes in ("forward", "and backward")]
    print("|", " | ".join(["mechanism", "form", *columns, "one step"]), "|")
    print("|---|---|" + "--:|" * (len(columns) + 1))
    for name, cls in catalog().items():
        for causal in (False, True):
            if getattr(cls.traits, "causal" if causal else "bidirectional") and cls.traits.cost <= MOST:
                counts = [
                    launches(cls, causal, length, learns) for length in LENGTHS for learns in (False, True)
                ]
                form = "causal" if causal else "bidirectional"
                step = f"{step_launches(cls):,}" if causal and cls.traits.state else ""
                cells = [f"`{name}`", form, *(f"{count:,}" for count in counts), step]
                print("|", " | ".join(cells), "|", flush=True)


def launches(cls: type[Mechanism], causal: bool, length: int, learns: bool) -> int:
    """Those of one forward pass; `learns`: and of the backward pass."""
    mechanism = built(cls, causal, length)
    inputs = [x.requires_grad_(learns) for x in tokens(mechanism, length)]

    def run() -> None:
        out = mechanism(*inputs)
        if learns:
            torch.autograd.grad(out.sum(), inputs)

    with torch.set_grad_enabled(learns):
        count_launches(run)
        return count_launches(run)


@torch.no_grad()
def step_launches(cls: type[Mechanism]) -> int:
    """Those of a step of one token in place, after some others."""
    mechanism = built(cls, True, LENGTHS[0]).eval()
    _, state = mechanism.step(*tokens(mechanism, 8))
    state, token = mechanism.reserve(state, 2), tokens(mechanism, 1)
    mechanism.step(*token, state=state, in_place=True)  # learns the layout of states
    return count_launches(lambda: mechanism.step(*token, state=state, in_place=True))


def built(cls: type[Mechanism], causal: bool, length: int) -> Mechanism:
    return cls(Dims(heads=HEADS, head_dim=WIDTH, max_len=length), causal=causal).to("meta")


def tokens(mechanism: Mechanism, length: int) -> list[Tensor]:
    return [
        torch.empty(BATCH, HEADS, length, width, device="meta", dtype=torch.bfloat16)
        for width in mechanism.projections().values()
    ]


if __name__ == "__main__":
    main()
