"""Feature maps phi of the kernel family, whose dot products stand in for attention weights."""

from typing import TYPE_CHECKING

from subquad.exports import export_lazily

if TYPE_CHECKING:
    from subquad.features.feature_map import ExponentialFeatureMap, FeatureMap, Features, Heads, LogFeatures

__all__ = ["ExponentialFeatureMap", "FeatureMap", "Features", "Heads", "LogFeatures"]

export_lazily(__name__, {"feature_map": __all__})
