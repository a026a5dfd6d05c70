"""Which examples stand in a batch together."""

import numpy as np
from jaxtyping import Int

POOL = 32  # batches whose sequences are sorted by length together


def batched(
    lengths: Int[np.ndarray, " n"], *, size: int, seed: int, epoch: int, shuffle: bool
) -> list[Int[np.ndarray, " b"]]:
    """The examples of each batch; one may be smaller than the others.

    Sequences of similar length stand together, so that little is padding: shuffled, in pools of 32 batches
    drawn at random, whose batches come in random order; else by length throughout. The order depends on
    `seed` and `epoch` alone.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size!r}")
    if not shuffle:
        order = np.argsort(lengths, kind="stable")
        return [order[first : first + size] for first in range(0, len(order), size)]
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), size * POOL):
        pool = order[first : first + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[place : place + size] for place in range(0, len(pool), size)]
    return [batches[place] for place in generator.permutation(len(batches))]
