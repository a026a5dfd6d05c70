"""Bugs planted in the Performer; those in what the whole kernel family shares are in `kernel`."""

from mutants.mutant import Mutant

PERFORMER = "mechanisms/performer.py"
DIRECTIONS = "features/directions.py"
FAVOR = "features/favor.py"
SUMS = "ops/kernel_sums.py"

MUTANTS = [
    Mutant(
        "performer",
        "limit_is_softmax",
        "queries and keys are not scaled by the fourth root of the width",
        DIRECTIONS,
        "if normalised else x * x.shape[-1] ** -0.25",
        "if normalised else x",
    ),
    Mutant(
        "performer",
        "deterministic",
        "directions come from no seed",
        PERFORMER,
        "generator=seeded(seed, dims.layer) if dims.layer else seeded(seed),",
        "generator=(lambda fresh: (fresh.seed(), fresh)[1])(torch.Generator()),",
    ),
    Mutant(
        "performer",
        "matches_definition",
        "an epsilon is added to the features of keys",
        SUMS,
        "phi_k = k.shifted(log_k - c)\n    phi_q",
        "phi_k = k.shifted(log_k - c) + 1e-4\n    phi_q",
    ),
    Mutant(
        "performer",
        "padding_is_invisible",
        "padding is masked in the numerator only",
        SUMS,
        "log_k = hidden(k.log, valid, -math.inf)\n    c",
        "log_k = k.log\n    c",
    ),
    Mutant(
        "performer",
        "causal_by_gradients",
        "no causal mask inside a chunk",
        SUMS,
        "dtype=torch.bool, device=v.device).tril()",
        "dtype=torch.bool, device=v.device)",
    ),
    Mutant(
        "performer",
        "stream_equals_sequence",
        "the old normaliser is not rescaled when the shift moves",
        SUMS,
        "old * state.z + phi_k.sum(2)[..., None], c)",
        "state.z + phi_k.sum(2)[..., None], c)",
    ),
    Mutant(
        "performer",
        "memory",
        "the kernel is formed for all pairs",
        SUMS,
        "return divide(phi_q @ (phi_k.mT @ v), phi_q @ phi_k.sum(2)[..., None])\n\n\ndef causal_exponential",
        "return divide((phi_q @ phi_k.mT) @ v, phi_q @ phi_k.sum(2)[..., None])\n\n\ndef causal_exponential",
    ),
]
