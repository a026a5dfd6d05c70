"""Bugs planted in the Performer; those in what the whole kernel family shares are in `kernel`."""

from mutants.mutant import Mutant

PERFORMER = "mechanisms/performer.py"
DIRECTIONS = "features/directions.py"
SUMS = "ops/kernel_sums.py"
TILES = "ops/linear_tiles.py"

MUTANTS = [
    Mutant(
        "performer",
        "limit_is_softmax",
        "queries and keys are not scaled by the fourth root of the width",
        DIRECTIONS,
        "W.to(torch.promote_types(q.dtype, torch.float32)) / root",
        "W.to(torch.promote_types(q.dtype, torch.float32))",
    ),
    Mutant(
        "performer",
        "deterministic",
        "directions come from no seed",
        PERFORMER,
        "generator=seeded(seed, dims.layer),",
        "generator=(lambda fresh: (fresh.seed(), fresh)[1])(torch.Generator()),",
    ),
    Mutant(
        "performer",
        "matches_definition",
        "an epsilon is added to the features of keys",
        TILES,
        "return log.sub_(c).exp_(), c",
        "return log.sub_(c).exp_() + 1e-4, c",
    ),
    Mutant(
        "performer",
        "padding_is_invisible",
        "padding is masked in the numerator only",
        TILES,
        "log.masked_fill_(padding, -torch.inf)",
        "pass",
    ),
    Mutant(
        "performer",
        "causal_by_resampling",
        "no causal mask inside a chunk",
        TILES,
        "inside = (phi_q @ phi.mT).tril_()",
        "inside = phi_q @ phi.mT",
    ),
    Mutant(
        "performer",
        "stream_equals_sequence",
        "the old normaliser is not rescaled when the shift moves",
        SUMS,
        "old * sums.z + phi_k.sum(2)[..., None], c)",
        "sums.z + phi_k.sum(2)[..., None], c)",
    ),
    Mutant(
        "performer",
        "memory",
        "the kernel is formed for all pairs",
        TILES,
        "torch.div(phi_q @ sums.S, seen(total)",
        "torch.div((phi_q @ tiles.keys(slice(None), sums.c)[0].mT) @ v, seen(total)",
    ),
]
