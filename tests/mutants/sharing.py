"""Bugs planted in what ranks exchange that share a sequence."""

from mutants.mutant import Mutant

CHECK = "ranks_equal_one_process"

MUTANTS = [
    Mutant(
        "linear",
        CHECK,
        "causal tokens see the sums of all ranks",
        "of_others",
        "every[: shards.rank] if causal else every",
        "every",
    ),
    Mutant(
        "performer",
        CHECK,
        "sums of ranks are added under their own shifts",
        "under_one_shift",
        "(c - top).exp() * every[..., : e + 1]",
        "every[..., : e + 1]",
    ),
    Mutant(
        "cosformer",
        CHECK,
        "each rank counts positions from its own first token",
        "CosFormer.sharded",
        "places(valid, like=q) + shards.before[:, None, None, None]",
        "places(valid, like=q)",
    ),
    Mutant(
        "retention",
        CHECK,
        "the state before a shard does not fade in it",
        "shard_map",
        "log_decay.sum(2).exp()",
        "log_decay.mul(0).sum(2).exp()",
    ),
    Mutant(
        "gated-delta",
        CHECK,
        "the delta rule corrects nothing in what earlier ranks wrote",
        "compose",
        "left @ state",
        "state",
    ),
    Mutant(
        "gated-linear",
        CHECK,
        "the other direction begins at the nearest rank",
        "both_ways",
        "maps[shards.rank + 1 :].flip(0)",
        "maps[shards.rank + 1 :]",
    ),
    Mutant(
        "local",
        CHECK,
        "one neighbour is asked, however wide the window",
        "hops_needed",
        "max(needed, hops)",
        "max(needed, min(hops, 1))",
    ),
    Mutant(
        "local",
        CHECK,
        "padding at an edge counts as tokens",
        "received",
        "(j >= len(j) - count) if by > 0 else (j < count)",
        "(j >= 0).expand(len(keyed), -1)",
    ),
    Mutant(
        "sinks",
        CHECK,
        "first tokens that stand in the window are seen twice",
        "Neighbourhood.with_first",
        "nearest.clamp(max=count)",
        "shards.before.clamp(max=count)",
    ),
    Mutant(
        "softmax",
        CHECK,
        "each rank places its queries at the beginning",
        "SoftmaxAttention.sharded",
        "j <= first + i[:, None]",
        "j <= i[:, None]",
    ),
    Mutant(
        "reformer",
        "refuses_to_be_shared",
        "what needs the whole sequence takes a part for it",
        "Mechanism.sharded",
        "raise ValueError(",
        "return self(*inputs, valid=valid, **named)\n        raise ValueError(",
    ),
]
