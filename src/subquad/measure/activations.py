"""Random q, k and v of given norms and angles, on which approximations of softmax are good or bad.

A score is |q| |k| cos(q, k) / sqrt(d). So the norm says how sharp softmax may become, and the angle how much
stands out: the key that a query matches, or those that gather about the same direction as it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.mechanism import QueriesKeysValues
from subquad.ops.shared.generators import seeded


def random_activations(
    *,
    norm: float,
    cosine: float,
    length: int,
    heads: int,
    head_dim: int,
    clusters: int = 0,
    causal: bool = False,
    seed: int = 0,
) -> QueriesKeysValues:
    """q, k and v of one sequence, `(1 h n d)` each, in float64: all q and k are equally long, v are normal.

    norm: |q| |k| / sqrt(d), the score of a query and a key that point the same way.
    cosine: between a query and a key that it matches, at least 0; with clusters, its mean.
    length: tokens of the sequence.
    heads, head_dim: of the attention; a head is at least 2 wide, for there to be angles.
    clusters: directions about which queries and keys gather, so that a query matches the keys of its own.
        0: none gather, and each query matches one key, drawn at random.
    causal: whether that key is among those that the query sees.
    seed: of all that is drawn.

    Raises `ValueError` for what cannot be drawn.
    """
    if norm <= 0 or not 0 <= cosine <= 1:
        raise ValueError(f"a norm is above 0 and a cosine from 0 to 1, not {norm!r} and {cosine!r}")
    if head_dim < 2 or length < 1:
        raise ValueError(f"a head is 2 wide and a sequence 1 long at least, not {head_dim} and {length}")
    generator = seeded(seed, "activations")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def places(limits: Float[Tensor, " n"]) -> Int[Tensor, "h n d"]:
        """For each head and token one of the numbers below its limit, as an index for `gather`."""
        drawn = torch.rand(heads, len(limits), generator=generator, dtype=torch.float64) * limits
        return drawn.long()[..., None].expand(-1, -1, head_dim)

    def turned(directions: Tensor, by: float) -> Tensor:
        """Unit vectors at that cosine from unit vectors, on random sides."""
        aside = normal(*directions.shape)
        aside = aside - (aside * directions).sum(-1, keepdim=True) * directions
        return by * directions + (1 - by**2) ** 0.5 * F.normalize(aside, dim=-1)

    all_places = torch.full((length,), float(clusters or length), dtype=torch.float64)
    directions = F.normalize(normal(heads, clusters or length, head_dim), dim=-1)
    if clusters:  # two vectors at a cosine of c ** (1/2) from one direction have c between them on average
        q, k = (turned(directions.gather(1, places(all_places)), cosine**0.5) for _ in "qk")
    else:
        seen = torch.arange(1, length + 1, dtype=torch.float64) if causal else all_places
        q, k = turned(directions.gather(1, places(seen)), cosine), directions
    size = (norm * head_dim**0.5) ** 0.5
    return QueriesKeysValues(size * q[None], size * k[None], normal(1, heads, length, head_dim))
