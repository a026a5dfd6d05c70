"""Star-Transformer: each token speaks with its two neighbours and with a relay, and the relay with all.

    h_i = e_i,    s = mean(e)                                             at first, and then, T times over:
    h_i = norm(relu(attention(h_i; [h_{i-1}, h_i, h_{i+1}, e_i, s])))     all satellites at once
    s   = norm(relu(attention(s; [s, h_1, .., h_n])))                     the relay, of the new satellites

Rounds share their weights; satellites and relay have weights of their own. The satellites stand in a ring,
which closes over a row's real tokens: h_0 is h_n. n tokens take n * 5 + n scores a round. Guo et al.:
Star-Transformer. NAACL 2019, arXiv:1902.09113, section 3, algorithm 1.

The mechanism "star" is the survey's pattern, attention with a ring and a relay among its tokens, and another
thing. A model here reads the mean of the satellites, where the paper's takes their maximum and the relay;
`rounds_of` gives both. There is no causal form: the relay has seen all tokens.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import Bound
from subquad.mechanism import Valid
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, require_form, require_no_attention
from subquad.nn.layers.ring import ring, take
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence
from subquad.ops.shared.masked_softmax import masked_softmax
from subquad.ops.shared.packing import Packing

Relay = Float[Tensor, "b 1 m"]
Rounds = Annotated[int, Bound("at least 2, so that the relay is heard", lambda n: n >= 2)]
KeysValues = Float[Tensor, "b s two h d"]  # of each token its key and its value


class Star(NamedTuple):
    """What the rounds make of the tokens of each row, and its relay."""

    satellites: HiddenStates
    relay: Relay


class StarTransformer(Layer):
    """All rounds of a Star-Transformer.

    rounds: T, how often satellites and relay are updated; in the first, the relay is still the mean.
    """

    traits = LayerTraits(name="star-transformer", paper="arXiv:1902.09113", checked=({"rounds": 2},))

    def __init__(self, config: LayerConfig, *, rounds: Rounds = 2) -> None:
        super().__init__()
        require_form(self.traits, config)
        require_no_attention(self.traits, config)
        self.rounds = rounds
        self.satellites = AttentionToFew(config.dim, config.heads)
        self.satellite_norm = nn.LayerNorm(config.dim)
        self.relay = AttentionToFew(config.dim, config.heads)
        self.relay_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence: Sequence) -> Sequence:
        packing = Packing.of(sequence.valid, like=sequence.values[:, None])
        tokens = packing.pack(sequence.values[:, None])[:, 0]
        satellites, _ = self.rounds_of(tokens, packing.valid, packing.count)
        return sequence._replace(values=packing.unpack(satellites[:, None])[:, 0])

    def rounds_of(self, tokens: HiddenStates, valid: Valid | None, count: Int[Tensor, " b"]) -> Star:
        """Satellites and relay after all rounds.

        tokens: the real ones of each row in front, zeros behind them.
        valid: which are real. None: all.
        count: how many are.
        """
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if valid is None else valid
        before, behind = ring(tokens.shape[1], count)
        h, s = tokens, mean_of(tokens, count)
        of_token = self.satellites.keys_values(tokens)
        relay_and_real = F.pad(real, (1, 0), value=True)[:, None]
        for _ in range(self.rounds):
            of_h, of_s = self.satellites.keys_values(h), self.satellites.keys_values(s)
            around = (take(of_h, before), of_h, take(of_h, behind), of_token, of_s.expand_as(of_h))
            h = self._update(self.satellites(h, torch.stack(around, 2)), self.satellite_norm)
            of_all = self.relay.keys_values(torch.cat([s, h], 1))
            s = self._update(self.relay(s, of_all[:, None], seen=relay_and_real), self.relay_norm)
        return Star(h, s)

    def _update(self, mixed: HiddenStates, norm: nn.LayerNorm) -> HiddenStates:
        return norm(F.relu(self.dropout(mixed)))


class AttentionToFew(nn.Module):
    """Multi-head attention of each query to keys of its own.

    dim: width of a token.
    heads: they divide it among them.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def keys_values(self, x: HiddenStates) -> KeysValues:
        return self.key_value(x).unflatten(-1, (2, self.heads, -1))

    def forward(
        self,
        queries: HiddenStates,
        of_keys: Float[Tensor, "b t s two h d"],
        *,
        seen: Bool[Tensor, "b t s"] | None = None,
    ) -> HiddenStates:
        """seen: which of its keys a query sees. None: all."""
        q = self.query(queries).unflatten(-1, (self.heads, -1))
        k, v = of_keys.unbind(3)
        scores = torch.einsum("bthd,btshd->bths", q * q.shape[-1] ** -0.5, k)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = wide.softmax(-1) if seen is None else masked_softmax(wide, seen=seen[:, :, None])
        return self.out(torch.einsum("bths,btshd->bthd", weights.to(v.dtype), v).flatten(2))


def mean_of(tokens: HiddenStates, count: Int[Tensor, " b"]) -> Relay:
    """That of the first `count` tokens of each row, behind which there are zeros."""
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return (wide.sum(1) / count.clamp(min=1)[:, None]).to(tokens.dtype)[:, None]
