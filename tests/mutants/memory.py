"""Bugs planted in what remembers by segments."""

from mutants.mutant import Mutant

INFINITY = "mechanisms/infinity.py"
SEGMENTS = "memories/segments.py"
CONTINUOUS = "memories/continuous.py"
SHORT = "memories/short_term.py"

MUTANTS = [
    Mutant(
        "infinity",
        "matches_definition",
        "the past is not contracted",
        CONTINUOUS,
        "[self.tau * middles(self.samples, like=like), self.tau + (1 - self.tau) * new]",
        "[middles(self.samples, like=like), new]",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "a density as wide as the query's alone: the bump's own width is forgotten",
        CONTINUOUS,
        "variance[..., None] + width**2 for width",
        "variance[..., None] + 0 * width + 1e-4 for width",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "W_R r turns the other way: distances with the wrong sign",
        SHORT,
        "a_cos * sin - a_sin * cos",
        "a_sin * cos - a_cos * sin",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "reads are not remembered, so nothing is sticky",
        INFINITY,
        "reads = reads + histogram(where, real=readers)",
        "reads = reads + 0 * histogram(where, real=readers)",
    ),
    Mutant(
        "infinity",
        "stream_equals_sequence",
        "the last full segment is lost between chunks",
        INFINITY,
        "return out, Memory(short, unfinished",
        "return out, Memory(0 * short, unfinished",
    ),
    Mutant(
        "infinity",
        "stream_equals_sequence",
        "the long-term memory is detached between chunks",
        INFINITY,
        "return out, Memory(short, unfinished, signal,",
        "return out, Memory(short, unfinished, signal.detach(),",
    ),
    Mutant(
        "infinity",
        "padding_is_invisible",
        "segments count padding too",
        SEGMENTS,
        "end=start + real.sum(1)",
        "end=start + length",
    ),
    Mutant(
        "infinity",
        "causal_by_gradients",
        "a segment sees all of itself",
        INFINITY,
        "seen = (j <= i[..., None]) &",
        "seen = (j <= i[..., None] + self.segment) &",
    ),
]
