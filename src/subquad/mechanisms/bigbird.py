"""BigBird: a window, global tokens and random keys, all of them whole blocks.

A sequence is cut into blocks of b tokens, the last of which may be shorter. Block I sees block J if

    |I - J| <= (w - 1) / 2              a window of w blocks
    I or J is the first or the last     global blocks see all and are seen by all
    J is one of r random blocks         drawn for I once and for all

and each token of I sees every token of each J that I sees, in one softmax. Sparse as it is, the graph is that
of a random graph with hubs, so that information crosses it in few steps. Work is O(t b (w + 2 + r) d).

Zaheer et al.: Big Bird: Transformers for Longer Sequences. NeurIPS 2020, arXiv:2007.14062, section 2 and
appendix D, in the form in which existing tokens are global (ITC). Where this departs:

- A random block may coincide with one that is seen anyway, and then adds nothing; no block counts twice. Of r
  blocks about r (1 - (w + 2) / B) add something where there are B: at the defaults 2.1 of 3 among 16 blocks,
  where one row in fifty gets none, 2.8 of 3 among 64, and 3.0 of 3 among 512. Hugging Face draws from the
  others.
- The random blocks are the same for all heads, and others in each layer.
- The last block is that of each row's own length, whatever padding follows.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.bounds import Count, CountOrZero, OddCount
from subquad.mechanism import Dims, Traits
from subquad.mechanisms.sparse import SparseAttention
from subquad.patterns import Blocks, Global, Local, Pattern, Random
from subquad.patterns.draws import draws


class BigBird(SparseAttention):
    """Sees a window of blocks, the first and the last block, and random ones.

    block: b, tokens in a block.
    window: w, blocks in the window, the own one in the middle; odd.
    random: r, random blocks that each block sees.
    seed: of the draws, which differ from layer to layer.

    Approximates softmax attention by a sparse random graph, and equals it where the blocks are so long that
    all are global: up to two blocks, or three with the window.

    Not for short sequences: below b (w + 2 + r) tokens, 512 at the defaults, softmax sees all for less.
    """

    traits = Traits(
        name="bigbird",
        paper="arXiv:2007.14062",
        family="sparse",
        bidirectional=True,
        normalised=True,
        limit={"block": 12},
        tiny={"block": 3, "random": 2},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        block: Count = 64,
        window: OddCount = 3,
        random: Count = 3,
        seed: CountOrZero = 0,
    ) -> None:
        self.block, self.window, self.random = block, window, random
        self.seed = (seed << 16) + dims.layer
        super().__init__(dims, causal=causal, pattern=self._pattern())

    def _pattern(self) -> Pattern:
        around = Local((self.window - 1) // 2)
        return Blocks(around | Global(1, last=1) | Random(self.random, seed=self.seed), self.block)

    def pairs(self, n: int) -> Bool[Tensor, "{n} {n}"]:
        count = -(-n // self.block)
        block = torch.arange(count)
        seen = (block[:, None] - block).abs() <= (self.window - 1) / 2
        seen[:1], seen[-1:], seen[:, :1], seen[:, -1:] = True, True, True, True
        drawn = draws(block, among=torch.tensor(count), count=self.random, seed=self.seed)
        for row, keys in enumerate(drawn.tolist()):
            seen[row, [key for key in keys if key >= 0]] = True
        return seen.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)[:n, :n]

    def redraw(self, *, generator: torch.Generator) -> None:
        self.set_extra_state(torch.randint(2**31, (), generator=generator, device=generator.device))

    def get_extra_state(self) -> Int[Tensor, ""]:
        """The seed in use: all that a saved model must know of its random blocks."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Int[Tensor, ""]) -> None:
        self.seed = int(state)
        self.pattern = self._pattern()
