"""Bugs planted in what is copied, stored, built on no device, or given nothing."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "poolingformer",
        "empty_batch",
        "the rows are guessed from what is left, which is nothing",
        "banded",
        "(batch, i.shape[0])",
        "(batch, -1)",
    ),
    Mutant(
        "longformer",
        "empty_batch",
        "no rows are laid out in tiles",
        "tiles.packed",
        "if q.shape[0] == 0 or q.shape[2] == 0:",
        "if q.shape[2] == 0:",
    ),
    Mutant(
        "linear",
        "empty_cross_attention",
        "a query that sees no key divides by nothing",
        "divide",
        "denominator.masked_fill(denominator == 0, 1)",
        "denominator",
    ),
    Mutant(
        "glu-1",
        "copying_and_pickling",
        "a class goes by a name that its module lacks",
        "named",
        "Named.__name__ = Named.__qualname__ =",
        "Named.__name__ =",
    ),
    Mutant(
        "compressive",
        "copying_and_pickling",
        "the graph of the latest penalty is copied along",
        "CompressiveAttention.__getstate__",
        'return {**super().__getstate__(), "_loss": torch.zeros(())}',
        "return super().__getstate__()",
    ),
    Mutant(
        "infinity",
        "meta_device_loading",
        "what is not stored is not made again",
        "ContinuousMemory._load_from_state_dict",
        "super()._load_from_state_dict(*args)\n        self._renew()",
        "super()._load_from_state_dict(*args)",
    ),
    Mutant(
        "routing",
        "meta_device_loading",
        "what is gathered stays on the meta device",
        "RoutingAttention.__init__",
        ', device="cpu")  # sums, count',
        ")",
    ),
]
