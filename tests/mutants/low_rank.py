"""Bugs planted in the low-rank and pooling mechanisms."""

from mutants.mutant import Mutant

LINFORMER = "mechanisms/linformer.py"
NYSTROMFORMER = "mechanisms/nystromformer.py"
POOLINGFORMER = "mechanisms/poolingformer.py"
SVD = "mechanisms/svd.py"
LANDMARKS = "ops/landmarks.py"
POOLING = "ops/pooling.py"
BANDS = "ops/bands.py"

MUTANTS = [
    Mutant(
        "linformer",
        "padding_is_invisible",
        "padding takes places in E",
        LINFORMER,
        "self._project(packing.pack(k), packing, E)",
        "self._project(k, packing, E)",
    ),
    Mutant(
        "linformer",
        "matches_definition",
        "keys' projection for values too",
        LINFORMER,
        "self._project(packing.pack(v), packing, E if F is None else F)",
        "self._project(packing.pack(v), packing, E)",
    ),
    Mutant(
        "nystromformer",
        "batch_mates_do_not_matter",
        "norms of the whole batch",
        NYSTROMFORMER,
        "A.sum(-2).amax(-1) * A.sum(-1).amax(-1)",
        "A.sum(-2).amax() * A.sum(-1).amax()",
    ),
    Mutant(
        "nystromformer",
        "padding_is_invisible",
        "segments of the padded length",
        NYSTROMFORMER,
        "Segments.cut(packing.count,",
        "Segments.cut(torch.full_like(packing.count, length),",
    ),
    Mutant(
        "nystromformer",
        "padding_is_invisible",
        "the convolution sees tokens where they stood",
        NYSTROMFORMER,
        "packing.pack(v), own, packing",
        "v, own, packing",
    ),
    Mutant(
        "nystromformer",
        "matches_definition",
        "all segments divided by the longest one's tokens",
        LANDMARKS,
        "inside.sum(2).clamp(min=1)[:, None, :, None]",
        "inside.shape[2]",
    ),
    Mutant(
        "poolingformer",
        "matches_definition",
        "the mean of a cut window divided by the kernel",
        POOLING,
        "inside.sum(2).clamp(min=1)[:, None, :, None]",
        "inside.shape[2]",
    ),
    Mutant(
        "poolingformer",
        "causal_by_gradients",
        "the second level looks ahead",
        POOLINGFORMER,
        "after=0 if self.causal else self.far",
        "after=self.far",
    ),
    Mutant(
        "poolingformer",
        "causal_by_resampling",
        "a window counts as complete where the row happens to end",
        POOLINGFORMER,
        "if not self.causal:\n            last =",
        "if True:\n            last =",
    ),
    Mutant(
        "poolingformer",
        "work",
        "one chunk for the whole sequence",
        BANDS,
        "step = max(-(-before // stride), 1)",
        "step = max(-(-length // stride), 1)",
    ),
    Mutant(
        "svd",
        "matches_definition",
        "the smallest singular values kept",
        SVD,
        "vectors[..., -self.rank :]",
        "vectors[..., : self.rank]",
    ),
    Mutant(
        "svd",
        "padding_is_invisible",
        "queries at padding take part in the decomposition",
        SVD,
        "(valid[:, :, None] & valid[:, None, :])[:, None]",
        "valid[:, None, None, :]",
    ),
]
