"""What a layer may do to queries and keys before a mechanism weighs one by the other."""

import math

from subquad.mechanism import Mechanism


def require_turning(mechanism: Mechanism) -> None:
    """Raise `ValueError` unless queries and keys may turn with their positions."""
    name, widths = mechanism.traits.name, mechanism.projections()
    if list(widths) != list("qkv"):
        raise ValueError(
            f"{name!r} takes {', '.join(widths)}, and rotary positions would turn q against inputs that do "
            "not turn: choose other positions"
        )
    if widths["q"] % 2:
        raise ValueError(
            f"rotary positions turn pairs, and heads are {widths['q']} wide: choose an even embed_dim / "
            "num_heads, or other positions"
        )
    if any(member.projections() != widths for member in mechanism.members()):
        raise ValueError(
            f"{name!r} mixes mechanisms with other queries or keys, and rotary positions would turn what one "
            "of them sees in part: choose other positions"
        )


def require_scaling(mechanism: Mechanism, scale: float) -> None:
    """Raise `ValueError` unless it is a scale, and the mechanism has scores to multiply by it."""
    if isinstance(scale, bool) or not 0 < scale < math.inf:
        raise ValueError(f"scale multiplies scores, and is a positive number or None, not {scale!r}")
    if not mechanism.score_inputs():
        raise ValueError(
            f"{mechanism.traits.name!r} with these options does not weigh keys by scores q . k, which a "
            "scale would multiply: leave out scale, or take a mechanism that does, such as 'softmax'"
        )
