"""The operators beneath the mechanisms, as functions: they know tensors, and no mechanism.

Each says what shapes and dtypes it takes and returns, and refuses others with a `ValueError`. `backends.py`
says which backend serves a call, and why the others refuse.
"""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.ops.attention import attention
    from subquad.ops.backends import backend, using
    from subquad.ops.banded_attention import banded_attention
    from subquad.ops.bucket_attention import Visibility, bucket_attention
    from subquad.ops.convolution import convolve
    from subquad.ops.linear_attention import FeatureKind, KernelInputs, linear_attention
    from subquad.ops.recurrence import Fusion, decayed_product, delta_product
    from subquad.ops.relative_attention import relative_attention
    from subquad.ops.shared.rotary import rotate
    from subquad.ops.shared.topk import stable_topk
    from subquad.ops.tile_attention import Tiling, tile_attention
    from subquad.ops.window_attention import window_attention

__all__ = [
    "FeatureKind",
    "Fusion",
    "KernelInputs",
    "Tiling",
    "Visibility",
    "attention",
    "backend",
    "banded_attention",
    "bucket_attention",
    "convolve",
    "decayed_product",
    "delta_product",
    "linear_attention",
    "relative_attention",
    "rotate",
    "stable_topk",
    "tile_attention",
    "using",
    "window_attention",
]

export_lazily(
    __name__,
    {
        "attention": ["attention"],
        "backends": ["backend", "using"],
        "banded_attention": ["banded_attention"],
        "bucket_attention": ["Visibility", "bucket_attention"],
        "convolution": ["convolve"],
        "linear_attention": ["FeatureKind", "KernelInputs", "linear_attention"],
        "recurrence": ["Fusion", "decayed_product", "delta_product"],
        "relative_attention": ["relative_attention"],
        "shared.rotary": ["rotate"],
        "tile_attention": ["Tiling", "tile_attention"],
        "shared.topk": ["stable_topk"],
        "window_attention": ["window_attention"],
    },
)
