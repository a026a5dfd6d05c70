"""Trainable feed-forward kernels: linear attention whose feature map is learnt.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

with phi a network of one to three layers, gated or not (`features/feedforward.py`). The paper compares eight
of them, which are eight names here:

    linear-kernel              softplus(x W)
    orthogonal-linear-kernel   the same, W kept orthogonal
    glu-1, glu-2, glu-3        gated layers
    oglu-1, oglu-2             gated layers, W kept orthogonal
    aoglu-3                    the same, with gates of a quarter of the rank

They add parameters, here in per cent of those that the four blocks of the paper's models for Long Range Arena
have, whose feed-forward layers are 1,024 wide. On text glu-3 adds more than the paper's tenth, aoglu-3 less:

                               text (256 wide, 4 heads)    ListOps (512 wide, 8 heads)
    linear-kernel              2.1                         1.6
    orthogonal-linear-kernel   2.1                         1.6
    glu-1                      4.1                         3.1
    glu-2                      8.3                         6.2
    glu-3                      12.4                        9.3
    oglu-1                     4.1                         3.1
    oglu-2                     8.3                         6.2
    aoglu-3                    9.3                         7.0

arXiv:2211.04076, section 3 and its table of kernels. Departs from the authors' code: nothing of size
n x d x d is formed; padding is masked after phi, since phi(0) is not zero; there is no dropout before the
kernel; and `strength`, the weight of the orthogonality penalty, which the published notebooks set to 0, is
0.01.
"""

from dataclasses import replace
from typing import Annotated

from subquad.bounds import Bound, PositiveOrZero, one_of
from subquad.features.feedforward import ACTIVATIONS, DEEPEST, GATES, FeedForward
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention

STRENGTH = 0.01

Gate = Annotated[str, one_of(*GATES)]
Layers = Annotated[int, Bound(f"from 1 to {DEEPEST}", lambda n: 1 <= n <= DEEPEST)]
Rank = Annotated[float, Bound("a share of the head's width, above 0 and up to 1", lambda x: 0 < x <= 1)]
Activation = Annotated[str, one_of(*ACTIVATIONS)]


class FeedForwardKernel(KernelAttention):
    """Any of the family.

    gate: "none", or "glu", a gate in each layer.
    layers: 1 to 3 of them; the paper's ablation goes no further.
    orthogonal: whether W starts orthogonal and `penalty()` keeps it near.
    gate_rank: the rank of gates as a share of the head's width; at 1 a gate is one full matrix.
    activation: of the last layer, "softplus", "gelu" or "sigmoid", all of them positive.
    strength: what the penalty is multiplied by; 0 in the authors' notebooks.

    Approximates no other attention: its kernel is learnt with the task, and equals softmax attention at no
    setting.

    Not for fine-tuning a model that was trained with softmax attention, whose weights it cannot take over
    unless it is trained to, nor for comparisons at exactly equal parameters: it adds those of the table.
    """

    traits = replace(KERNEL, name="feedforward-kernel", paper="arXiv:2211.04076")

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        gate: Gate = "glu",
        layers: Layers = 1,
        orthogonal: bool = False,
        gate_rank: Rank = 1.0,
        activation: Activation = "softplus",
        strength: PositiveOrZero = STRENGTH,
    ) -> None:
        features = FeedForward(
            dims.heads,
            dims.head_dim,
            gate=gate,
            layers=layers,
            orthogonal=orthogonal,
            gate_rank=gate_rank,
            activation=activation,
            strength=strength,
        )
        super().__init__(dims, causal=causal, features=features)


def named(
    name: str, *, gate: str, layers: int, orthogonal: bool = False, gate_rank: float = 1.0
) -> type[KernelAttention]:
    """The kernel of the paper's table that goes by `name`."""

    class Named(FeedForwardKernel):
        traits = replace(FeedForwardKernel.traits, name=name)

        def __init__(self, dims: Dims, *, causal: bool, activation: Activation = "softplus") -> None:
            super().__init__(
                dims,
                causal=causal,
                gate=gate,
                layers=layers,
                orthogonal=orthogonal,
                gate_rank=gate_rank,
                activation=activation,
            )

    Named.__name__ = Named.__qualname__ = "".join(part.capitalize() for part in name.split("-"))
    return Named


# each by the name of its class, by which it is pickled
LinearKernel = named("linear-kernel", gate="none", layers=1)
OrthogonalLinearKernel = named("orthogonal-linear-kernel", gate="none", layers=1, orthogonal=True)
Glu1 = named("glu-1", gate="glu", layers=1)
Glu2 = named("glu-2", gate="glu", layers=2)
Glu3 = named("glu-3", gate="glu", layers=3)
Oglu1 = named("oglu-1", gate="glu", layers=1, orthogonal=True)
Oglu2 = named("oglu-2", gate="glu", layers=2, orthogonal=True)
Aoglu3 = named("aoglu-3", gate="glu", layers=3, orthogonal=True, gate_rank=0.25)

PAPERS_KERNELS = (LinearKernel, OrthogonalLinearKernel, Glu1, Glu2, Glu3, Oglu1, Oglu2, Aoglu3)
