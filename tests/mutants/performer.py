"""Bugs planted in the Performer; those in what the whole kernel family shares are in `kernel`."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "performer",
        "limit_is_softmax",
        "queries and keys are not scaled by the fourth root of the width",
        "Projection.prepare",
        "W.to(torch.promote_types(q.dtype, torch.float32)) / root",
        "W.to(torch.promote_types(q.dtype, torch.float32))",
    ),
    Mutant(
        "performer",
        "deterministic",
        "directions come from no seed",
        "Performer.__init__",
        "generator=seeded(seed, dims.layer),",
        "generator=(lambda fresh: (fresh.seed(), fresh)[1])(torch.Generator()),",
    ),
    Mutant(
        "performer",
        "matches_definition",
        "an epsilon is added to the features of keys",
        "Tiles.keys",
        "return log.sub_(c).exp_(), c",
        "return log.sub_(c).exp_() + 1e-4, c",
    ),
    Mutant(
        "performer",
        "padding_is_invisible",
        "padding is masked in the numerator only",
        "Tiles.keys",
        "log.masked_fill_(padding, -torch.inf)",
        "pass",
    ),
    Mutant(
        "performer",
        "causal_by_resampling",
        "no causal mask inside a chunk",
        "averages",
        "inside = (phi_q @ phi.mT).tril_()",
        "inside = phi_q @ phi.mT",
    ),
    Mutant(
        "performer",
        "stream_equals_sequence",
        "the old normaliser is not rescaled when the shift moves",
        "collect_exponentials",
        "old * sums.z + phi_k.sum(2)[..., None], c)",
        "sums.z + phi_k.sum(2)[..., None], c)",
    ),
    Mutant(
        "performer",
        "memory_growth",
        "the kernel is formed for all pairs",
        "averages",
        "torch.div(phi_q @ sums.S, seen(total)",
        "torch.div((phi_q @ tiles.keys(slice(None), sums.c)[0].mT) @ v, seen(total)",
    ),
]
