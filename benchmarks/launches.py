"""What each mechanism asks a GPU for where Triton does not serve: `python -m benchmarks.launches`.

No GPU is needed, and no time is taken. Heads are 64 wide, in bfloat16, without padding. What the first call
makes for all that follow, such as layouts of patterns, is not counted.
"""

import torch

from subquad import Dims, catalog
from subquad.measure.launches import count_launches
from subquad.mechanism import Mechanism

LENGTHS = (4096, 32768)
BATCH, HEADS, WIDTH = 1, 8, 64
MOST = 2.0  # exponent of work up to which a mechanism is counted


def main() -> None:
    columns = [f"{passes}, {length:,}" for length in LENGTHS for passes in ("forward", "and backward")]
    print("|", " | ".join(["mechanism", "form", *columns]), "|")
    print("|---|---|" + "--:|" * len(columns))
    for name, cls in catalog().items():
        for causal in (False, True):
            if getattr(cls.traits, "causal" if causal else "bidirectional") and cls.traits.cost <= MOST:
                counts = [
                    launches(cls, causal, length, learns) for length in LENGTHS for learns in (False, True)
                ]
                form = "causal" if causal else "bidirectional"
                print(
                    "|", " | ".join([f"`{name}`", form, *(f"{count:,}" for count in counts)]), "|", flush=True
                )


def launches(cls: type[Mechanism], causal: bool, length: int, learns: bool) -> int:
    """Those of one forward pass; `learns`: and of the backward pass."""
    dims = Dims(heads=HEADS, head_dim=WIDTH, max_len=length)
    mechanism = cls(dims, causal=causal).to("meta")
    inputs = [
        torch.empty(BATCH, HEADS, length, width, device="meta", dtype=torch.bfloat16, requires_grad=learns)
        for width in mechanism.projections().values()
    ]

    def run() -> None:
        out = mechanism(*inputs)
        if learns:
            torch.autograd.grad(out.sum(), inputs)

    with torch.set_grad_enabled(learns):
        count_launches(run)
        return count_launches(run)


if __name__ == "__main__":
    main()
