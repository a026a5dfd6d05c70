"""What a layer may do to queries and keys before a mechanism weighs one by the other."""

import math

from subquad.mechanism import Mechanism


def require_turning(mechanism: Mechanism) -> None:
    """Raise `ValueError` unless queries and keys may turn with their positions."""
    for member in mechanism.members():
        if not member.turned_inputs():
            raise ValueError(
                f"rotary positions would turn queries or keys of {member.traits.name!r} against what does "
                "not turn: choose other positions"
            )
    if not mechanism.turned_inputs():
        raise ValueError(
            f"{mechanism.traits.name!r} mixes mechanisms with other queries or keys, and rotary positions "
            "would turn what one of them sees in part: choose other positions"
        )
    for name in mechanism.turned_inputs():
        if (width := mechanism.projections()[name]) % 2:
            raise ValueError(
                f"rotary positions turn pairs, and heads are {width} wide: choose an even embed_dim / "
                "num_heads, or other positions"
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
