"""Bugs planted in sparse patterns and the mechanisms that run them."""

from mutants.mutant import Mutant

LAYOUT = "patterns/layout.py"
TILES = "ops/tile_chunks.py"
PATTERN = "patterns/pattern.py"
ATOMS = "patterns/atoms.py"
SPARSE = "mechanisms/sparse.py"
LOCAL = "mechanisms/local.py"
LONGFORMER = "mechanisms/longformer.py"

MUTANTS = [
    Mutant(
        "bigbird",
        "matches_definition",
        "a pair that two parts hold counts twice",
        LAYOUT,
        "seen = seen & ~earlier.covers(i, j, count)",
        "seen = seen & (j >= 0)",
    ),
    Mutant(
        "bigbird",
        "matches_definition",
        "the last of a query's sums stands for all",
        TILES,
        "to[:, self.at].add_(found)",
        "to[:, self.at].copy_(found)",
    ),
    Mutant(
        "bigbird",
        "padding_is_invisible",
        "random keys are drawn from the padded length",
        ATOMS,
        "among = i + 1 if causal else n[:, None]",
        "among = i + 1 if causal else 0 * n[:, None] + length",
    ),
    Mutant(
        "star",
        "padding_is_invisible",
        "the ring closes over the padded length",
        ATOMS,
        "last, first = n[:, None] - 1 - first",
        "last, first = 0 * n[:, None] + length - 1 - first",
    ),
    Mutant(
        "pattern",
        "matches_definition",
        "a token sees the one behind it",
        PATTERN,
        "covers(i, j, i + 1) & (j <= i)",
        "covers(i, j, i + 1) & (j <= i + 1)",
    ),
    Mutant(
        "pattern",
        "causal_by_resampling",
        "causal rows draw from the whole sequence",
        PATTERN,
        "covers(i, j, i + 1) & (j <= i)",
        "covers(i, j, n) & (j <= i)",
    ),
    Mutant(
        "local",
        "work",
        "one tile for the whole sequence",
        ATOMS,
        "if before + 1 + after >= -(-own // block):",
        "if block:",
    ),
    Mutant(
        "local",
        "stream_equals_sequence",
        "the window remembers padding",
        LOCAL,
        "last = packing.count[:, None] + torch.arange(w",
        "last = 0 * packing.count[:, None] + q.shape[2] + torch.arange(w",
    ),
    Mutant(
        "local",
        "stream_equals_sequence",
        "the window of a stream is one token short",
        LOCAL,
        "near = (d >= 0) & (d <= w)",
        "near = (d >= 0) & (d < w)",
    ),
    Mutant(
        "sparse-transformer",
        "stream_equals_sequence",
        "a chunk follows the longest row of the cache, not its own",
        SPARSE,
        "behind = (slot - cache.count[:, None])",
        "behind = (slot - old + 0 * cache.count[:, None])",
    ),
    Mutant(
        "longformer",
        "matches_definition",
        "global tokens have the ordinary query",
        LONGFORMER,
        "attention(packed[3][:, :, : self.globals]",
        "attention(packed[0][:, :, : self.globals]",
    ),
]
