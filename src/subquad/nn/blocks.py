"""One layer of a Transformer: attention, then a network for each token, each added to what came in.

    x = x + attention(norm(x)),    x = x + mlp(norm(x))

The norm comes first ("pre-norm"), so that the sum runs through all layers untouched. Xiong et al.: On Layer
Normalization in the Transformer Architecture. ICML 2020, arXiv:2002.04745, section 3.
"""

from torch import nn

from subquad.mechanism import Valid
from subquad.nn.multihead import MultiheadAttention, Stream, Tokens


class TransformerBlock(nn.Module):
    """Pre-norm block around any attention; `dropout` acts on what either part adds.

    What stands at padding must be finite (the encoder sees to it), and does not matter otherwise.
    """

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

    def forward(self, x: Tokens, *, valid: Valid | None = None) -> Tokens:
        normed = self.attention_norm(x)
        padding = None if valid is None else ~valid
        mixed, _ = self.attention(normed, normed, normed, key_padding_mask=padding)
        return self._add(x, mixed)

    def step(
        self, x: Tokens, *, valid: Valid | None = None, state: Stream | None = None
    ) -> tuple[Tokens, Stream]:
        """The same, for the next chunk of a stream."""
        mixed, state = self.attention.step(self.attention_norm(x), valid=valid, state=state)
        return self._add(x, mixed), state

    def _add(self, x: Tokens, mixed: Tokens) -> Tokens:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
