"""Attention among the places of a grid, which knows by how many rows and columns two of them are apart.

    l_ij = q_i . (k_j + r^W_{x_j - x_i} + r^H_{y_j - y_i}) / sqrt(d),    x the column of a place, y its row

The two terms of position make dot products wider, which any mechanism with scores q . k can take: a query
also has its logits of all columns and of all rows, and a key says in which column and row it stands.

    [q_i, (q_i . r^W_{x - x_i})_x, (q_i . r^H_{y - y_i})_y] . [k_j, onehot(x_j), onehot(y_j)]

r^W and r^H are learnt, and shared by the heads. They begin around zero with deviation 1 / sqrt(d), which the
paper's listing hands to TensorFlow's initialiser as a mean. Bello et al.: Attention Augmented Convolutional
Networks. ICCV 2019, arXiv:1904.09925, section 3.1.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.mechanism import Dims, Keys, Mechanism, Queries
from subquad.nn.attention_layer import AttentionLayer
from subquad.nn.layers.layer import LayerConfig, read_inside
from subquad.nn.sequence import Sequence
from subquad.ops.shared.waiting import require_at_most
from subquad.registry import build

ALIGNED = 8  # of the numbers of a head PyTorch's fused kernels on CUDA ask for a multiple
REMEDY = "give the layer the height and the width of the pictures"

Places = Int[Tensor, "#b t"]


class GridAttention(AttentionLayer):
    """Multi-head attention of the places of a grid to one another: `(b t m) -> (b t h*e)`.

    inside: the mechanism with its options; it has scores q . k, or that is a `ValueError`.
    height, width: rows and columns of the grid.
    key_dim, value_dim: d and e, of a head.
    """

    def __init__(
        self, config: LayerConfig, inside: str, *, height: int, width: int, key_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.heads, self.height, self.width = config.heads, height, width
        self.key_dim, self.value_dim = key_dim, value_dim
        widest = max(key_dim + height + width, value_dim)
        self.dims = Dims(
            heads=config.heads,
            head_dim=-(-widest // ALIGNED) * ALIGNED,
            max_len=config.max_len or height * width,
            layer=config.index,
        )
        self.attention, self.options = read_inside(inside)
        self.mechanism = self.build_mechanism()
        require_scores(inside, self.mechanism)
        self.query_key_value = nn.Linear(config.dim, sum(self._widths()))
        self.out = nn.Linear(config.heads * value_dim, config.heads * value_dim)
        self.columns = nn.Parameter(torch.empty(2 * width - 1, key_dim))  # r^W, from the leftmost on
        self.rows = nn.Parameter(torch.empty(2 * height - 1, key_dim))
        self.reset_parameters()

    def build_mechanism(self) -> Mechanism:
        return build(self.attention, self.dims, causal=False, **self.options)

    def reset_parameters(self) -> None:
        for embeddings in (self.columns, self.rows):
            nn.init.normal_(embeddings, std=self.key_dim**-0.5)

    def forward(self, sequence: Sequence) -> Float[Tensor, "b t _"]:
        """Raises `ValueError` for a row of more tokens than there are places."""
        x, valid, positions, _ = sequence
        if x.shape[1] > self.height * self.width:
            places = self.height * self.width
            otherwise = f"a grid of {places} places, and a row of {{}} tokens: {REMEDY}"
            require_at_most(places, positions + 1, otherwise)
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in self.query_key_value(x).split(self._widths(), -1)
        )
        column, row = positions % self.width, positions // self.width
        D = self.dims.head_dim
        of_axes = relative_logits(q, self.columns, column), relative_logits(q, self.rows, row)
        q = torch.cat([q, *of_axes], -1) * (D / self.key_dim) ** 0.5
        k = torch.cat([k, one_hot(column, self.width, like=k), one_hot(row, self.height, like=k)], -1)
        q, k, v = (F.pad(each, (0, D - each.shape[-1])) for each in (q, k, v))
        mixed = self.mechanism(q, k, v, valid=valid)[..., : self.value_dim]
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _widths(self) -> list[int]:
        return [self.heads * each for each in (self.key_dim, self.key_dim, self.value_dim)]


def require_scores(inside: str, mechanism: Mechanism) -> None:
    """Raise `ValueError` unless the mechanism weighs keys by scores q . k, which may be of any width."""
    widths = dict.fromkeys("qkv", mechanism.dims.head_dim)
    if mechanism.score_inputs() != ("q",) or mechanism.projections() != widths:
        raise ValueError(
            f"{inside!r} does not weigh keys by scores q . k alone, of which relative positions are a part: "
            "put another mechanism inside, such as 'softmax' or 'local'"
        )


def relative_logits(
    q: Queries, embeddings: Float[Tensor, "offsets d"], place: Places
) -> Float[Tensor, "b h t size"]:
    """What each query gives each place of an axis, by how far that is from its own.

    embeddings: of each offset, from the most negative on; 2 * size - 1 of them.
    place: where on the axis each query stands.
    """
    size = (len(embeddings) + 1) // 2
    offset = torch.arange(size, device=q.device) - place[..., None]
    index = (offset + size - 1)[:, None].expand(*q.shape[:3], -1)
    return (q @ embeddings.mT).gather(-1, index)


def one_hot(place: Places, size: int, *, like: Keys) -> Float[Tensor, "b h s size"]:
    """One at a place on an axis, and zeros at all others."""
    there = place[..., None] == torch.arange(size, device=place.device)
    return there[:, None].to(like.dtype).expand(*like.shape[:3], -1)
