"""Heads around a mechanism: project, mix, merge. It knows no mechanism by name.

The call signature, the conventions and the names in the state dict are those of
`torch.nn.MultiheadAttention`, so the layer stands in `torch.nn.TransformerEncoderLayer` and loads its
weights; `subquad.replace_attention` puts it there. What most mechanisms cannot do is refused and not ignored:
attention maps, dropout on them, arbitrary masks.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.mechanism import Dims, Mechanism, State, Valid
from subquad.nn.positions import count
from subquad.nn.sources import require_one
from subquad.nn.state import require_own
from subquad.nn.torch_layer import (
    CARRIED,
    WEIGHTS,
    blocked,
    mechanism_name,
    no_dropout,
    own_options,
    unsupported,
    watch_assignments,
)
from subquad.ops.rotary import rotate
from subquad.registry import build

Heads = Float[Tensor, "b h t e"]
Inputs = dict[str, Float[Tensor, "b h _ _"]]  # q has as many tokens as queries, the others as keys
Tokens = Float[Tensor, "b t m"]
Causal = bool | Literal["values"]  # "values": a choice of keys that sees the future is accepted
Keyed = Float[Tensor, "b s m"]

ONE = "pass one tensor as query, key and value"


class Stream(NamedTuple):
    """What a layer remembers between the chunks of a stream."""

    offset: Int[Tensor, " b"]  # real tokens so far
    memory: State


class MultiheadAttention(nn.Module):
    """Multi-head attention by the mechanism called `attention`; `options` are the mechanism's own.

    Arguments are torch's but for the third, the mechanism's name; those behind it go by name. Inputs are
    `(batch, time, features)` unless `batch_first=False`: torch's default is the other.

    `causal` and `rotary` are how the layer is built. `is_causal` and `attn_mask` of `forward` can only say
    again that it is causal. Some mechanisms are causal in their values only: which keys a query sees depends
    on later tokens, and a language model would learn to read them from that; `causal=True` refuses these, and
    `causal="values"` takes them. `rotary` turns queries and keys with their positions, before any feature
    map. Mechanisms with weights per position need `max_len`, the longest sequence; those that differ from
    layer to layer look at `layer`, counted from 0.

    The rows of `in_proj_weight` make the mechanism's inputs in its own order: q, k and v, as in torch, and
    after them what else it wants.
    """

    _qkv_same_embed_dim = False  # else torch's encoder layers take their fused softmax and never call us

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attention: str | float = "softmax",  # a number is torch's dropout, and refused
        *rest: Any,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        causal: Causal = False,
        rotary: bool = False,
        max_len: int | None = None,
        layer: int = 0,
        **options: Any,
    ) -> None:
        """Raise `ValueError` for what the mechanism or this layer cannot do, naming what to do instead."""
        super().__init__()
        watch_assignments(MultiheadAttention)
        self.attention = mechanism_name(attention, rest)
        if dropout:
            raise ValueError(no_dropout(dropout))
        if causal not in (True, False, "values"):
            raise ValueError(f'causal is True, False or "values", not {causal!r}')
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads} heads")
        self.options = own_options(options, embed_dim=embed_dim)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.batch_first = batch_first
        self.causal = bool(causal)
        self.rotary = rotary
        self.max_len = max_len
        self.layer = layer
        self.mechanism = self.build_mechanism()
        if causal is True and self.mechanism.traits.causal == "values":
            raise ValueError(
                f"{attention!r} is causal in its values only: which keys a query sees depends on later "
                'tokens. Take a mechanism that is strictly causal, or accept this one with causal="values"'
            )
        self.widths = self.mechanism.projections()
        if rotary:
            self._check_rotary()
        rows = num_heads * sum(self.widths.values())
        self.in_proj_weight = nn.Parameter(torch.empty(rows, embed_dim))
        if bias:
            self.in_proj_bias = nn.Parameter(torch.empty(rows))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(num_heads * self.widths["v"], embed_dim, bias=bias)
        self.reset_parameters()
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    @classmethod
    def from_torch(
        cls,
        theirs: nn.MultiheadAttention,
        attention: str = "softmax",
        *,
        causal: Causal = False,
        rotary: bool = False,
        max_len: int | None = None,
        layer: int = 0,
        **options: Any,
    ) -> "MultiheadAttention":
        """A layer with copies of the weights of torch's: its device, dtype, mode, axes and what it learns.

        Inputs beyond q, k and v are projected by fresh weights. Raises `ValueError` for what torch's layer
        does and ours cannot.
        """
        if problems := unsupported(theirs):
            raise ValueError("; ".join(problems))
        for name in CARRIED & options.keys():
            raise ValueError(f"{name} is carried over from torch's layer: leave it out")
        ours = cls(
            theirs.embed_dim,
            theirs.num_heads,
            attention,
            bias=theirs.in_proj_bias is not None,
            batch_first=theirs.batch_first,
            device=theirs.out_proj.weight.device,
            dtype=theirs.out_proj.weight.dtype,
            causal=causal,
            rotary=rotary,
            max_len=max_len,
            layer=layer,
            **options,
        )
        if list(ours.widths.items())[:3] != [(name, ours.head_dim) for name in "qkv"]:
            raise ValueError(
                f"{attention!r} projects to {ours.widths}, and torch's weights make q, k, v of width "
                f"{ours.head_dim}: build a layer anew, or take another mechanism"
            )
        with torch.no_grad():
            for name, mine in ours.named_parameters():
                if name in WEIGHTS:
                    weight = attrgetter(name)(theirs)
                    mine[: len(weight)] = weight
                    mine.requires_grad_(weight.requires_grad)
        return ours.train(theirs.training)

    def build_mechanism(self) -> Mechanism:
        """A mechanism such as this layer's, with weights of its own."""
        dims = Dims(heads=self.num_heads, head_dim=self.head_dim, max_len=self.max_len, layer=self.layer)
        return build(self.attention, dims, causal=self.causal, **self.options)

    def reset_parameters(self) -> None:
        """Draw the projections anew, each by itself, so that q, k and v do not depend on what comes after."""
        for weight in self.in_proj_weight.split(self._rows()):
            nn.init.xavier_uniform_(weight, gain=2**-0.5)  # torch's bound for q, k and v drawn together
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        query: Tensor,  # (b t m), (t m), or nested as torch's encoders make them, which have no shape
        key: Tensor,
        value: Tensor,
        key_padding_mask: Bool[Tensor, "*b s"] | Float[Tensor, "*b s"] | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend from `query` to `key` and `value`: `(b t m), (b s m), (b s m) -> (b t m), None`.

        With `batch_first=False` all three and the output are `(t b m)`; masks are `(b s)` all the same, as in
        torch. `key_padding_mask` is True, or -inf, at PADDING; whatever stands there, even NaN, changes
        nothing. Torch returns weights unless told `need_weights=False`; here there are none to average.

        Raises `ValueError` for what is not supported.
        """
        if need_weights:
            raise ValueError("attention weights are never formed: call with need_weights=False")
        if is_causal and not self.causal:
            raise ValueError("this layer sees the future: for is_causal=True build it with causal=True")
        if query.is_nested:
            if attn_mask is not None or key_padding_mask is not None:
                raise ValueError("nested tensors take no mask: pad them, or leave the mask out")
            return self._attend_nested(query, key, value), None
        valid = None if key_padding_mask is None else ~blocked(key_padding_mask, name="key_padding_mask")
        alone = query.ndim == 2
        if alone:
            query, key, value = each(lambda x: x[None], query, key, value)
            valid = None if valid is None else valid[None]
        elif not self.batch_first:
            query, key, value = each(axes_swapped, query, key, value)
        if attn_mask is not None:
            self._check_mask(attn_mask, length=query.shape[1])
        if valid is not None and valid.shape != key.shape[:2]:
            raise ValueError(f"padding of shape {tuple(valid.shape)} for keys of {tuple(key.shape[:2])}")
        out = self._attend(query, key, value, valid)
        if alone:
            return out[0], None
        return (out if self.batch_first else axes_swapped(out)), None

    def step(
        self, x: Tensor, *, valid: Valid | None = None, state: Stream | None = None
    ) -> tuple[Tensor, Stream]:
        """Self-attention for the next chunk of a stream, of any length: `(b t m) -> (b t m)`.

        With `batch_first=False` both are `(t b m)`. `valid` is True at REAL tokens, and `(b t)` always.
        """
        if not self.batch_first:
            x = axes_swapped(x)
        require_own(state, Stream, rows=len(x))
        x = clear(x, valid)
        offset = torch.zeros(len(x), dtype=torch.int64, device=x.device) if state is None else state.offset
        memory = None if state is None else state.memory
        ordinals, offset = count(x.shape[1], valid=valid, offset=offset)
        mixed, memory = self.mechanism.step(**self._project(x, x, x, ordinals), valid=valid, state=memory)
        out = self._merge(mixed)
        return (out if self.batch_first else axes_swapped(out)), Stream(offset, memory)

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        axes = "" if self.batch_first else ", batch_first=False"
        return f"{self.embed_dim}, {self.num_heads}, {self.attention!r}, causal={self.causal}{axes}{options}"

    def _attend(self, query: Tokens, key: Keyed, value: Keyed, valid: Valid | None) -> Tokens:
        self._check_sources(query, key, value)
        k = clear(key, valid)
        q = k if key is query else finite(query, valid)
        v = k if value is key else clear(value, valid)
        start = torch.zeros(1, dtype=torch.int64, device=query.device)
        ordinals, _ = count(key.shape[1], valid=valid, offset=start)
        return self._merge(self.mechanism(**self._project(q, k, v, ordinals), valid=valid))

    def _attend_nested(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Torch's encoder packs sequences so in eval mode, when it is told their padding."""
        if key is not query or value is not key:
            raise ValueError(f"nested tensors are for self-attention: {ONE}")
        lengths = [len(row) for row in query.unbind()]
        x = query.to_padded_tensor(0.0)
        ends = torch.tensor(lengths, device=x.device)
        out = self._attend(x, x, x, torch.arange(x.shape[1], device=x.device) < ends[:, None])
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(out, lengths, strict=True)])

    def _project(self, q: Tokens, k: Keyed, v: Keyed, ordinals: Int[Tensor, "#b s"]) -> Inputs:
        if k is q and v is k:
            projected = F.linear(q, self.in_proj_weight, self.in_proj_bias).split(self._rows(), dim=-1)
        else:
            sources = [{"k": k, "v": v}.get(name, q) for name in self.widths]
            weights = self.in_proj_weight.split(self._rows())
            no_bias = [None] * len(weights)
            biases = no_bias if self.in_proj_bias is None else self.in_proj_bias.split(self._rows())
            projected = map(F.linear, sources, weights, biases)
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        inputs = dict(zip(self.widths, heads, strict=True))
        if self.rotary:
            inputs |= {name: rotate(inputs[name], ordinals) for name in "qk"}
        return inputs

    def _merge(self, mixed: Heads) -> Tokens:
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _rows(self) -> list[int]:
        return [self.num_heads * width for width in self.widths.values()]

    def _check_rotary(self) -> None:
        if list(self.widths) != list("qkv"):
            raise ValueError(
                f"{self.attention!r} takes {', '.join(self.widths)}, and rotary positions would turn q "
                "against inputs that do not turn: choose other positions"
            )
        if self.widths["q"] % 2:
            raise ValueError(
                f"rotary positions turn pairs, and heads are {self.widths['q']} wide: choose an even "
                "embed_dim / num_heads, or other positions"
            )

    def _check_sources(self, query: Tokens, key: Keyed, value: Keyed) -> None:
        """Refuse a second sequence where there can be only one, whatever objects that one comes in."""
        apart = mixed = ""
        if list(self.widths) != list("qkv"):
            mixed = f"{self.attention!r} projects to {', '.join(self.widths)}: {ONE}"
        if not self.mechanism.traits.cross:
            apart = f"{self.attention!r} has no cross-attention: {ONE}"
        elif self.causal or self.rotary:
            apart = f"causal and rotary attention are within one sequence: {ONE}"
        if apart or mixed:
            require_one(query, key, otherwise=apart or mixed)
        if mixed:
            require_one(query, value, otherwise=mixed)

    def _check_mask(self, attn_mask: Tensor, *, length: int) -> None:
        if not self.causal:
            raise ValueError(
                "attn_mask is not supported: give padding as key_padding_mask, and for a causal layer build "
                "it with causal=True"
            )
        future = torch.ones(length, length, dtype=torch.bool, device=attn_mask.device).triu(1)
        if not torch.equal(blocked(attn_mask, name="attn_mask"), future):
            raise ValueError(
                "attn_mask is not the square causal mask, the only one supported: leave it out, since this "
                "layer was built causal, and give padding as key_padding_mask"
            )


def each(change: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The three after the change. One tensor stays one, since one product then makes all inputs."""
    queries = change(q)
    keys = queries if k is q else change(k)
    return queries, keys, keys if v is k else change(v)


def axes_swapped(x: Tensor) -> Tensor:
    """(t b m) for (b t m), and back."""
    return x.transpose(0, 1)


def clear(x: Keyed, valid: Valid | None) -> Keyed:
    """`x` with zeros at padding: NaN times a gradient of zero would be NaN in the gradients of weights."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


def finite(query: Tokens, valid: Valid | None) -> Tokens:
    """`query` with zeros for tokens at padding that are not finite: it may be a copy of the keys.

    In cross-attention the mask says nothing of finite queries, as in `inputs.zero_padding`.
    """
    if valid is None or query.shape[1] != valid.shape[1]:
        return query
    return query.masked_fill(~valid[..., None] & ~query.isfinite().all(-1, keepdim=True), 0)
