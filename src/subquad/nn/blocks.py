"""One layer of a Transformer: attention, then a network for each token, each added to what came in.

    x = x + attention(norm(x)),    x = x + mlp(norm(x))

The norm comes first ("pre-norm"), so that the sum runs through all layers untouched. Xiong et al.: On Layer
Normalization in the Transformer Architecture. ICML 2020, arXiv:2002.04745, section 3.
"""

from torch import nn

from subquad.mechanism import State
from subquad.nn.layers.layer import Layer
from subquad.nn.multihead import MultiheadAttention
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence


class TransformerBlock(Layer):
    """Pre-norm block around any attention. It has the width of its attention.

    attention: the layer that mixes tokens.
    mlp_ratio: the hidden width of the network for each token, as a multiple of the model's width.
    dropout: the probability, from 0 to 1, that a number of what either part adds is dropped in training.
    """

    shareable = True

    def __init__(
        self, attention: MultiheadAttention, *, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        dim = attention.embed_dim
        hidden = round(dim * mlp_ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Sequence) -> Sequence:
        """The sequence with new values, as wide as before; its positions and padding stay."""
        mixed = self.attention.attend(self._normed(sequence))
        return self._add(sequence, mixed)

    def step(
        self, sequence: Sequence, state: State | None, *, in_place: bool = False
    ) -> tuple[Sequence, State]:
        """The same for the next chunk of a stream, and the mechanism's state after it.

        state: the mechanism's after the chunk before. None: this is the first.
        in_place: the new state takes the place of `state`, as in `Mechanism.step`.
        """
        mixed, state = self.attention.advance(self._normed(sequence), state, in_place=in_place)
        return self._add(sequence, mixed), state

    def reserve(self, state: State, tokens: int) -> State:
        return self.attention.mechanism.reserve(state, tokens)

    def _normed(self, sequence: Sequence) -> Sequence:
        return sequence._replace(values=self.attention_norm(sequence.values))

    def _add(self, sequence: Sequence, mixed: HiddenStates) -> Sequence:
        x = sequence.values + self.dropout(mixed)
        return sequence._replace(values=x + self.dropout(self.mlp(self.mlp_norm(x))))
