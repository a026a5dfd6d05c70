"""Attention-augmented convolution: a convolution makes most channels of a picture, and attention among all
its places makes the others.

    AAConv(x) = [conv(x), attention(x)],    attention(x) = [O_1, .., O_h] W^O

A sequence is a picture read row by row: its first token is the place at the top left, and a row of the
picture has `width` of them. Attention knows rows and columns (`grid_attention.py`). Bello et al.: Attention
Augmented Convolutional Networks. ICCV 2019, arXiv:1904.09925, section 3. Heads of 20 numbers, and a tenth of
the channels, are those of its networks for CIFAR-100, as others quote them.

The paper puts it into the residual blocks of convolutional networks. Here it stands in a block as attention
does in a Transformer's, so that networks differ in it alone:

    x = x + mix(relu(norm(AAConv(norm(x))))),    x = x + mlp(norm(x))

Departures. The norm behind it is a layer norm by default; `norm="batch"` is a ResNet's, over real tokens. The
paper says how many numbers all keys have, kappa * dim; `key_dim` says it of one head. Padding is no place
of the picture: real tokens stand side by side, and places for which there is no token are as those beyond the
border, zeros to the convolution and unseen by attention.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import Count, OddCount, OpenShare
from subquad.mechanism import Valid
from subquad.nn.layers.grid_attention import REMEDY, GridAttention
from subquad.nn.layers.layer import Layer, LayerConfig, LayerTraits, require_form, require_no_attention
from subquad.nn.layers.norms import Norm, norm_after_convolution
from subquad.nn.positions import HiddenStates
from subquad.nn.sequence import Sequence
from subquad.ops.shared.packing import Packing


class AugmentedConvolution(Layer):
    """A residual block around an attention-augmented convolution, and one around a network for each token.

    height, width: rows and columns of the pictures; no sequence has more tokens than that makes places.
    kernel: rows and columns that the convolution covers.
    share: of the channels those that attention makes, a whole number a head and at least one.
    key_dim: numbers of a query and a key, of each head.
    norm: behind the convolution: "layer", or "batch" over real tokens.
    inside: the mechanism that attends, with its options, as in "local:width=65"; it has scores q . k.
    """

    traits = LayerTraits(
        name="augmented-convolution",
        paper="arXiv:1904.09925",
        checked=(
            {"height": 128, "width": 4, "share": 0.25},
            {"height": 103, "width": 5, "share": 0.5, "kernel": 5, "key_dim": 3, "inside": "local:width=3"},
        ),
    )

    def __init__(
        self,
        config: LayerConfig,
        *,
        height: Count = 32,
        width: Count = 32,
        kernel: OddCount = 3,
        share: OpenShare = 0.1,
        key_dim: Count = 20,
        norm: Norm = "layer",
        inside: str = "softmax",
    ) -> None:
        super().__init__()
        require_form(self.traits, config)
        require_no_attention(self.traits, config)
        dim, heads, self.width = config.dim, config.heads, width
        if config.max_len is not None and config.max_len > height * width:
            raise ValueError(
                f"a picture of height={height} and width={width} has {height * width} places, and sequences "
                f"have up to {config.max_len} tokens: {REMEDY}"
            )
        value_dim = max(1, round(share * dim / heads))
        if heads * value_dim >= dim:
            raise ValueError(
                f"share={share} of {dim} channels in {heads} heads leaves none to the convolution: take a "
                "smaller share, fewer heads or a greater dim"
            )
        self.norm_before = nn.LayerNorm(dim)
        self.convolution = nn.Conv2d(dim, dim - heads * value_dim, kernel, padding=kernel // 2)
        self.attention = GridAttention(
            config, inside, height=height, width=width, key_dim=key_dim, value_dim=value_dim
        )
        self.norm = norm_after_convolution(norm, dim)
        self.mix = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence: Sequence) -> Sequence:
        normed = sequence._replace(values=self.norm_before(sequence.values))
        augmented = torch.cat([self.convolved(normed.values, sequence.valid), self.attention(normed)], -1)
        mixed = self.mix(F.relu(self.norm(augmented, sequence.valid)))
        x = sequence.values + self.dropout(mixed)
        return sequence._replace(values=x + self.dropout(self.mlp(self.mlp_norm(x))))

    def convolved(self, x: HiddenStates, valid: Valid | None) -> Float[Tensor, "b t _"]:
        """What the convolution makes of the picture, in as many rows as its tokens fill."""
        packing = Packing.of(valid, like=x[:, None])
        tokens = packing.pack(x[:, None])[:, 0]
        length = tokens.shape[1]
        rows = max(1, -(-length // self.width))
        absent = rows * self.width - length
        picture = F.pad(tokens, (0, 0, 0, absent)).mT.unflatten(-1, (rows, self.width))
        convolved = self.convolution(picture).flatten(2)[..., :length].mT
        return packing.unpack(convolved[:, None])[:, 0]
