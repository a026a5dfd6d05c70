"""The pattern of the Star-Transformer: neighbours on a ring, and a relay that all see and that sees all.

    S_i = {i - 1, i, i + 1 on the ring} and the relay        a satellite
    S_0 = everything                                         the relay

The first token is the relay, the others are the satellites; the ring closes from the last of each row's own
tokens to the first satellite. Any two tokens are two steps apart, through the relay, for O(t d).

Guo, Qiu, Liu, Shao, Xue, Zhang: Star-Transformer. NAACL 2019, arXiv:1902.09113, section 3, as the surveys of
efficient attention count it: as a sparse pattern on ordinary q, k and v (Lin et al., arXiv:2106.04554,
section 4.1.1). The paper's encoder has more, which no drop-in attention has and this pattern lacks:

- The relay is a state of its own and no token: it starts as the mean of all tokens, and is an output.
- Each satellite sees its own embedding e_i, too, in every round.
- In a round the satellites come first, and the relay sees what has become of them, by an attention with
  weights of its own. Here both see what the round before left.
- Behind each attention stand ReLU and a layer norm, and the rounds share their weights.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from subquad.bounds import Count
from subquad.mechanism import Dims, Traits
from subquad.mechanisms.sparse import SparseAttention
from subquad.patterns import Global, Ring


class StarAttention(SparseAttention):
    """Sees its neighbours and the first token, which sees all.

    width: neighbours on either side, on a ring without the first token; the paper's is 1.

    Approximates softmax attention by its nearest keys and one meeting point, and equals it when the ring's
    width is the sequence's length.

    Not for tasks that need many distant facts at once: everything from afar passes through one token. Not for
    generation, since the relay sees all.
    """

    traits = Traits(
        name="star",
        paper="arXiv:1902.09113",
        family="sparse",
        bidirectional=True,
        normalised=True,
        limit={"width": 24},
        tiny={"width": 1},
    )

    def __init__(self, dims: Dims, *, causal: bool, width: Count = 1) -> None:
        self.width = width
        super().__init__(dims, causal=causal, pattern=Ring(width, start=1) | Global(1))

    def pairs(self, n: int) -> Bool[Tensor, "{n} {n}"]:
        seen = torch.zeros(n, n, dtype=torch.bool)
        seen[:1], seen[:, :1] = True, True
        for satellite in range(n - 1):
            for step in range(-self.width, self.width + 1):
                seen[1 + satellite, 1 + (satellite + step) % (n - 1)] = True
        return seen
