"""Other packages' attention on the inputs of ours, so that the two can be timed and compared on equal terms.

A peer is built from a mechanism of ours and takes its weights where both have them. Only the core is theirs:
layers of theirs that project tokens are replaced by the identity. Packages are imported when they are used;
where one is missing, the error says what to install.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.mechanism import Mechanism

Mix = Callable[..., Tensor]  # takes the inputs of our mechanism, by name


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another implementation of the mechanism called `attention`."""

    name: str
    modules: tuple[str, ...]  # have to be there
    package: str  # what to install for them
    attention: tuple[str, ...]
    causal: bool | None  # the form that it is compared in; None: both
    build: Callable[[Mechanism, int], Mix]  # of a mechanism, for sequences of that length
    agrees: bool = False  # whether its numbers are ours, from the same weights
    compiled: bool = False  # takes a compiler, and seconds to begin

    def serves(self, mechanism: Mechanism) -> bool:
        named = mechanism.traits.name in self.attention
        return named and self.causal in (None, mechanism.causal)

    @property
    def installed(self) -> bool:
        return all(find_spec(module) is not None for module in self.modules)

    def attention_like(self, mechanism: Mechanism, length: int) -> Mix:
        """The peer's attention on the mechanism's inputs; `ValueError` where it is not installed."""
        if not self.installed:
            raise ValueError(f'{self.name!r} is not installed; pip install "{self.package}"')
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # they print and warn
            warnings.simplefilter("ignore")
            return self.build(mechanism, length)


def installed_peers(mechanism: Mechanism, *, compiled: bool = False) -> list[Peer]:
    """The installed peers of a mechanism in its form, those that take a compiler only on request."""
    return [
        peer
        for peer in PEERS.values()
        if peer.serves(mechanism) and peer.installed and compiled >= peer.compiled
    ]


def import_quietly(module: str) -> Any:
    """The module; packages print and warn while they are imported."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        return import_module(module)


def performer(mechanism: Mechanism, length: int) -> Mix:
    W = mechanism.state_dict()["features.project.W"]
    package = import_quietly("performer_pytorch.performer_pytorch")
    attend = package.FastAttention(W.shape[1], nb_features=W.shape[0], causal=mechanism.causal)
    attend.to(W).projection_matrix.copy_(W)
    return lambda q, k, v: attend(q, k, v)


def performer_compiled(mechanism: Mechanism, length: int) -> Mix:
    return torch.compile(performer(mechanism, length), dynamic=False)


def performer_extended(mechanism: Mechanism, length: int) -> Mix:
    """As it would be, did it not take the C++ for CUDA's alone."""
    W = mechanism.state_dict()["features.project.W"]
    package = import_quietly("performer_pytorch.performer_pytorch")
    features = partial(package.softmax_kernel, projection_matrix=W)
    return lambda q, k, v: causal_product(features(q, is_query=True), features(k, is_query=False), v)


def fast_transformers(mechanism: Mechanism, length: int) -> Mix:
    return lambda q, k, v: causal_product(F.elu(q) + 1, F.elu(k) + 1, v)


def causal_product(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
    product = import_quietly("fast_transformers.causal_product").causal_dot_product
    return product(phi_q, phi_k, v) / (phi_q * phi_k.cumsum(2)).sum(-1, keepdim=True)


def fla_linear(mechanism: Mechanism, length: int) -> Mix:
    chunked = import_quietly("fla.ops.linear_attn.naive").naive_chunk_linear_attn

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
        summed = ours(chunked(*theirs(phi_q, phi_k, v), scale=1.0))
        return summed / (phi_q * phi_k.cumsum(2)).sum(-1, keepdim=True)

    return mix


def fla_retention(mechanism: Mechanism, length: int) -> Mix:
    """Its recurrence, and in PyTorch what the mechanism does around it."""
    chunked = import_quietly("fla.ops.simple_gla.naive").naive_chunk_simple_gla
    decay = (1 - 2.0 ** -(5 + torch.arange(mechanism.dims.heads))).log()
    waves = 10_000 ** -torch.linspace(0, 1, mechanism.dims.head_dim // 2)
    rotations = torch.polar(torch.ones(()), torch.arange(length)[:, None] * waves)

    def mix(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        q, k = rotated(q, rotations), rotated(k, rotations)
        out = chunked(*theirs(q, k, v), decay.expand(*q.shape[::2], -1))[0]
        return normed(ours(out), mechanism) * F.silu(gate)

    return mix


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """Channels c and c + d/2 are a complex number, which is multiplied."""
    pairs = torch.complex(*x.chunk(2, -1)) * rotations
    return torch.cat([pairs.real, pairs.imag], -1)


def fla_gated(mechanism: Mechanism, length: int) -> Mix:
    """Its recurrence, token by token, and in PyTorch what the mechanism does around it."""
    recurrent = import_quietly("fla.ops.gla.naive").naive_recurrent_gla

    def mix(q: Tensor, k: Tensor, v: Tensor, forget: Tensor, gate: Tensor) -> Tensor:
        out = ours(recurrent(*theirs(q, k, v, F.logsigmoid(forget) / 16))[0])
        return normed(out, mechanism) * F.silu(gate)

    return mix


def fla_delta(mechanism: Mechanism, length: int) -> Mix:
    chunkwise = import_quietly("fla.ops.delta_rule.naive").delta_rule_chunkwise

    def mix(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        q, k = (F.normalize(F.silu(x), dim=-1) for x in (q, k))
        q = q * q.shape[-1] ** 0.5  # it divides q by that
        out = chunkwise(q, k, F.silu(v), beta.sigmoid()[..., 0])[0]
        return normed(out, mechanism)

    return mix


def normed(out: Tensor, mechanism: Mechanism) -> Tensor:
    scale, epsilon = getattr(mechanism, "scale"), getattr(mechanism, "epsilon")  # noqa: B009
    return F.rms_norm(out, out.shape[-1:], scale, epsilon)


def theirs(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in inputs)


def ours(out: Tensor) -> Tensor:
    return out.transpose(1, 2)


def local_attention(mechanism: Mechanism, length: int) -> Mix:
    attend = import_quietly("local_attention.local_attention").LocalAttention(
        getattr(mechanism, "span"),  # noqa: B009  # the mechanism is one of several to the type checker
        causal=mechanism.causal,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    return lambda q, k, v: attend(q, k, v)


def linformer(mechanism: Mechanism, length: int) -> Mix:
    """Keys and values are the queries' tokens: this package takes one sequence, which it projects itself."""
    weights = mechanism.state_dict()
    heads, width = mechanism.dims.heads, mechanism.dims.head_dim
    rank, positions = weights["E"].shape[-2:]
    layer = import_quietly("linformer.linformer").LinformerSelfAttention(
        heads * width, positions, k=rank, heads=heads
    )
    layer.to_q = layer.to_k = layer.to_v = layer.to_out = nn.Identity()
    layer.to(weights["E"]).proj_k.data.copy_(weights["E"][0].mT)
    layer.proj_v.data.copy_(weights["F"][0].mT)
    return lambda q, k, v: merged(layer, q)


def nystrom_attention(mechanism: Mechanism, length: int) -> Mix:
    """As `linformer`: of one sequence."""
    heads, width = mechanism.dims.heads, mechanism.dims.head_dim
    layer = import_quietly("nystrom_attention.nystrom_attention").NystromAttention(
        heads * width,
        dim_head=width,
        heads=heads,
        num_landmarks=getattr(mechanism, "landmarks"),  # noqa: B009
        residual=False,
    )
    layer.to_qkv, layer.to_out = Thrice(), nn.Identity()
    return lambda q, k, v: merged(layer, q)


class Thrice(nn.Module):
    """What a layer that projects to queries, keys and values becomes where all are the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x, x], -1)


def merged(layer: nn.Module, x: Tensor) -> Tensor:
    """Heads side by side, as a layer takes them, and apart again."""
    return layer(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)


def reformer(mechanism: Mechanism, length: int) -> Mix:
    """Its rotations are drawn anew at each call and its scores are over sqrt(d): its numbers are its own."""
    attend = (
        import_quietly("reformer_pytorch.reformer_pytorch")
        .LSHAttention(
            bucket_size=getattr(mechanism, "bucket"),  # noqa: B009
            n_hashes=getattr(mechanism, "rounds"),  # noqa: B009
            causal=mechanism.causal,
            attend_across_buckets=False,
            allow_duplicate_attention=False,
        )
        .eval()
    )
    return lambda q, v: attend(q.flatten(0, 1), v.flatten(0, 1))[0].unflatten(0, q.shape[:2])


def routing(mechanism: Mechanism, length: int) -> Mix:
    means = mechanism.state_dict()["mu"]
    heads, clusters, width = means.shape
    attend = (
        import_quietly("routing_transformer.routing_transformer")
        .KmeansAttention(
            clusters,
            mechanism.window,
            heads,
            width,
            causal=mechanism.causal,
        )
        .eval()
    )
    attend.kmeans.means.copy_(means)
    attend.kmeans.initted.fill_(True)
    return lambda q, k, v: attend(q, k, v)[0]


def flex(mechanism: Mechanism, length: int) -> Mix:
    """PyTorch's own way to run a pattern, which is compiled; it has no backward pass on CPUs."""
    package = import_quietly("torch.nn.attention.flex_attention")
    seen = getattr(mechanism, "pairs")(length)  # noqa: B009
    seen = seen.expand(mechanism.dims.heads, length, length)

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return seen[h, i, j]

    blocks = package.create_block_mask(visible, None, seen.shape[0], length, length, device="cpu")
    attend = torch.compile(partial(package.flex_attention, block_mask=blocks), dynamic=False)
    return lambda q, k, v: attend(q.detach(), k.detach(), v.detach())


_PATTERNS = ("local", "pattern", "bigbird", "sparse-transformer")
_FLA = {"modules": ("fla", "triton"), "package": "fla-core triton", "causal": True}
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            Peer(
                name="performer-pytorch",
                modules=("performer_pytorch",),
                package="performer-pytorch",
                attention=("performer",),
                causal=None,
                build=performer,
            ),
            Peer(
                name="performer-pytorch, compiled",
                modules=("performer_pytorch",),
                package="performer-pytorch",
                attention=("performer",),
                causal=False,
                build=performer_compiled,
                compiled=True,
            ),
            Peer(
                name="performer-pytorch on fast-transformers",
                modules=("performer_pytorch", "fast_transformers"),
                package="performer-pytorch pytorch-fast-transformers",
                attention=("performer",),
                causal=True,
                build=performer_extended,
            ),
            Peer(
                name="fast-transformers",
                modules=("fast_transformers",),
                package="pytorch-fast-transformers",
                attention=("linear",),
                causal=True,
                build=fast_transformers,
                agrees=True,
            ),
            Peer(name="fla linear", attention=("linear",), build=fla_linear, agrees=True, **_FLA),
            Peer(name="fla retention", attention=("retention",), build=fla_retention, agrees=True, **_FLA),
            Peer(name="fla gated", attention=("gated-linear",), build=fla_gated, agrees=True, **_FLA),
            Peer(name="fla delta", attention=("delta",), build=fla_delta, agrees=True, **_FLA),
            Peer(
                name="local-attention",
                modules=("local_attention",),
                package="local-attention",
                attention=("local",),
                causal=True,
                build=local_attention,
                agrees=True,
            ),
            Peer(
                name="linformer",
                modules=("linformer",),
                package="linformer",
                attention=("linformer",),
                causal=False,
                build=linformer,
                agrees=True,
            ),
            Peer(
                name="nystrom-attention",
                modules=("nystrom_attention",),
                package="nystrom-attention",
                attention=("nystromformer",),
                causal=False,
                build=nystrom_attention,
            ),
            Peer(
                name="reformer-pytorch",
                modules=("reformer_pytorch",),
                package="reformer-pytorch",
                attention=("reformer",),
                causal=None,
                build=reformer,
            ),
            Peer(
                name="routing-transformer",
                modules=("routing_transformer",),
                package="routing-transformer",
                attention=("routing",),
                causal=None,
                build=routing,
            ),
            Peer(
                name="FlexAttention, compiled",
                modules=("torch",),
                package="torch",
                attention=_PATTERNS,
                causal=None,
                build=flex,
                agrees=True,
                compiled=True,
            ),
        )
    }
)
