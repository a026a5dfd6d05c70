"""Heads around a mechanism: project, mix, merge. It knows no mechanism by name.

The call signature, the conventions and the names in the state dict are those of
`torch.nn.MultiheadAttention`, so the layer stands in `torch.nn.TransformerEncoderLayer` and loads its
weights; `subquad.replace_attention` puts it there. What most mechanisms cannot do is refused and not ignored:
attention maps, dropout on them, arbitrary masks.
"""

from operator import attrgetter
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.mechanism import Dims, Mechanism, Outputs, State, Valid
from subquad.nn.attention_layer import AttentionLayer
from subquad.nn.documents import by_document
from subquad.nn.positions import HiddenStates
from subquad.nn.scores import require_scaling, require_turning
from subquad.nn.sequence import Sequence, finite_queries, make_sequence, zero_padded
from subquad.nn.sources import require_one
from subquad.nn.state import Stream, require_own
from subquad.nn.torch_layer import (
    CARRIED,
    WEIGHTS,
    axes_swapped,
    blocked,
    map_inputs,
    mechanism_name,
    no_dropout,
    own_options,
    require_causal_mask,
    unsupported,
    watch_assignments,
)
from subquad.ops.shared.rotary import rotate
from subquad.registry import build

Inputs = dict[str, Float[Tensor, "b h _ _"]]  # q has as many tokens as queries, the others as keys
Causal = bool | Literal["values"]  # "values": a choice of keys that sees the future is accepted
Keyed = Float[Tensor, "b s m"]
KeyPositions = Int[Tensor, "#b s"]

ONE = "pass one tensor as query, key and value"


class MultiheadAttention(AttentionLayer):
    """Multi-head attention by the mechanism called `attention`.

    embed_dim: width of the inputs and of the output.
    num_heads: heads of queries; they divide `embed_dim` among them.
    attention: the mechanism's name, and the last argument by position.
    dropout: 0; weights are never formed, to be dropped.
    bias: whether projections add one.
    batch_first: inputs are (batch, time, features). False, torch's default: they are (time, batch, features).
    device, dtype: of the weights. None: torch's defaults.
    causal: True: a query sees nothing later. Some mechanisms are causal in their values only: which keys a
        query sees depends on later tokens, and a language model would learn to read them from that. True
        refuses these, "values" takes them.
    rotary: queries and keys turn with their positions, before any feature map, and before the gates of single
        channels; refused where they would meet what does not turn.
    kv_heads: heads of keys and values, each shared by num_heads / kv_heads of queries: 1 is multi-query
        attention. None: num_heads. Other inputs stay one a head, and streams keep states of all heads.
    scale: what scores q . k are multiplied by; refused by mechanisms that have no such scores. None: what the
        mechanism does by itself, 1 / sqrt(d) for queries of width d.
    max_len: tokens of the longest sequence, for mechanisms with weights per position. None: no bound.
    layer: the layer's number in its network, from 0, for mechanisms that differ from layer to layer.
    options: the mechanism's own.

    The rows of `in_proj_weight` make the mechanism's inputs in its own order: q, k and v, as in torch, and
    after them what else it wants.

    Ainslie et al.: GQA. EMNLP 2023, arXiv:2305.13245, section 2, is about sharing keys and values.
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
        kv_heads: int | None = None,
        scale: float | None = None,
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
        self.kv_heads = num_heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or num_heads % self.kv_heads:
            raise ValueError(f"num_heads={num_heads} do not share kv_heads={kv_heads} evenly: take a divisor")
        self.causal = bool(causal)
        self.rotary = rotary
        self.scale = scale
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
            require_turning(self.mechanism)
        if self.kv_heads != num_heads and "k" not in self.widths:
            raise ValueError(
                f"{attention!r} makes its keys of queries, and cannot share them: leave out kv_heads"
            )
        if scale is not None:
            require_scaling(self.mechanism, scale)
        rows = sum(self._rows())
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
        scale: float | None = None,
        max_len: int | None = None,
        layer: int = 0,
        **options: Any,
    ) -> "MultiheadAttention":
        """A layer with copies of the weights of torch's: its device, dtype, mode, axes and what it learns.

        Inputs beyond q, k and v are projected by newly drawn weights. Options are those of the class. Raises
        `ValueError` for what torch's layer does and ours cannot.
        """
        if problems := unsupported(theirs):
            raise ValueError("; ".join(problems))
        for name in CARRIED & options.keys():
            raise ValueError(f"{name} is carried over from torch's layer: leave it out")
        if options.get("kv_heads") not in (None, theirs.num_heads):
            raise ValueError(
                f"torch's weights make keys and values for each of {theirs.num_heads} heads: leave out "
                "kv_heads, or build a layer anew"
            )
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
            scale=scale,
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
        dims = Dims(heads=self.num_heads, head_dim=self.head_dim, max_len=self.max_len, layer=self.layer)
        return build(self.attention, dims, causal=self.causal, **self.options)

    def reset_parameters(self) -> None:
        """Draw the projections anew, each by itself, so that q, k and v do not depend on what comes after.

        Heads that are shared are drawn as if all of them were there.
        """
        for rows, (name, width) in zip(
            self.in_proj_weight.split(self._rows()), self.widths.items(), strict=True
        ):
            unshared = self.embed_dim + self.num_heads * width
            here = self.embed_dim + self._heads(name) * width
            # torch's bound for q, k and v drawn together
            nn.init.xavier_uniform_(rows, gain=2**-0.5 * (here / unshared) ** 0.5)
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
        *,
        documents: Int[Tensor, "*b s"] | None = None,
    ) -> tuple[Tensor, None]:
        """Attend from `query` to `key` and `value`: `(b t m), (b s m), (b s m) -> (b t m), None`.

        With `batch_first=False` all three and the output are `(t b m)`; without a batch they are `(t m)`.
        Raises `ValueError` for what is not supported.

        key_padding_mask: `(b s)` always: True, or -inf, at PADDING, where even NaN changes nothing. None: all
            keys are real.
        need_weights: must be False: there are no weights to return, nor for average_attn_weights to average.
        attn_mask, is_causal: the causal mask, and True, for a causal layer only; they change nothing.
        documents: `(b s)` always, in self-attention: a number for each token, the same for all of a document,
            where several are packed into a row and do not see one another (`nn.documents`). None: it is one.
        """
        if need_weights:
            raise ValueError("attention weights are never formed: call with need_weights=False")
        if is_causal and not self.causal:
            raise ValueError("this layer sees the future: for is_causal=True build it with causal=True")
        if query.is_nested:
            if any(x is not None for x in (attn_mask, key_padding_mask, documents)):
                raise ValueError("nested tensors take no mask and no documents: pad them, or leave these out")
            return self._attend_nested(query, key, value), None
        valid = None if key_padding_mask is None else ~blocked(key_padding_mask, name="key_padding_mask")
        unbatched = query.ndim == 2
        if unbatched:
            query, key, value = map_inputs(lambda x: x[None], query, key, value)
            valid = None if valid is None else valid[None]
            documents = None if documents is None else documents[None]
        elif not self.batch_first:
            query, key, value = map_inputs(axes_swapped, query, key, value)
        if attn_mask is not None:
            require_causal_mask(attn_mask, causal=self.causal, length=query.shape[1])
        if valid is not None and valid.shape != key.shape[:2]:
            raise ValueError(f"padding of shape {tuple(valid.shape)} for keys of {tuple(key.shape[:2])}")
        if documents is None:
            out = self._attend(query, key, value, valid)
        else:
            for x in (key, value):
                require_one(query, x, otherwise=f"documents are packed in self-attention alone: {ONE}")
            out = by_document(
                lambda x, real: self._attend(x, x, x, real), query, valid=valid, documents=documents
            )
        if unbatched:
            return out[0], None
        return (out if self.batch_first else axes_swapped(out)), None

    def step(
        self, x: Tensor, *, valid: Valid | None = None, state: Stream | None = None, in_place: bool = False
    ) -> tuple[Tensor, Stream]:
        """Self-attention for the next chunk of a stream, of any length: `(b t m) -> (b t m)`.

        With `batch_first=False` both are `(t b m)`. Raises `ValueError` where the mechanism cannot stream,
        and for a state that no layer returned, or that has other rows.

        valid: `(b t)` always: True at REAL tokens. None: all are real.
        state: what `step` returned for the chunk before. None: this is the first.
        in_place: the new state takes the place of `state`, as in `Mechanism.step`.
        """
        x = x if self.batch_first else axes_swapped(x)
        require_own(state, Stream, rows=len(x))
        offset = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.offset
        sequence, offset = make_sequence(x, valid=valid, offset=offset)
        out, memory = self.advance(sequence, None if state is None else state.memory, in_place=in_place)
        offset = state.offset.copy_(offset) if in_place and state is not None else offset
        return (out if self.batch_first else axes_swapped(out)), Stream(offset, memory)

    def attend(self, sequence: Sequence) -> HiddenStates:
        """Self-attention within a sequence, whatever `batch_first`: without torch's conventions."""
        x, valid, positions, shards = sequence
        if shards is None:
            return self._mix(x, x, x, valid, positions)
        inputs = self._project(x, x, x, positions)
        return self._merge(self.mechanism.sharded(**inputs, valid=valid, shards=shards))

    def reserve(self, state: Stream, tokens: int) -> Stream:
        """The state with room for so many further tokens of each row, which steps in place fill."""
        return state._replace(memory=self.mechanism.reserve(state.memory, tokens))

    def advance(
        self, sequence: Sequence, memory: State | None, *, in_place: bool = False
    ) -> tuple[HiddenStates, State]:
        """`attend` for a stream's next chunk, and the mechanism's state after it; None before the first."""
        x, valid, positions, _ = sequence
        inputs = self._project(x, x, x, positions)
        mixed, memory = self.mechanism.step(**inputs, valid=valid, state=memory, in_place=in_place)
        return self._merge(mixed), memory

    def extra_repr(self) -> str:
        special = {} if self.batch_first else {"batch_first": False}
        special |= {} if self.kv_heads == self.num_heads else {"kv_heads": self.kv_heads}
        special |= {} if self.scale is None else {"scale": self.scale}
        options = "".join(f", {name}={value!r}" for name, value in (special | self.options).items())
        return f"{self.embed_dim}, {self.num_heads}, {self.attention!r}, causal={self.causal}{options}"

    def _attend(self, query: HiddenStates, key: Keyed, value: Keyed, valid: Valid | None) -> HiddenStates:
        self._check_sources(query, key, value)
        keys, _ = make_sequence(key, valid=valid)
        if key is query and value is key:
            return self.attend(keys)
        q = keys.values if key is query else finite_queries(query, valid)
        v = keys.values if value is key else zero_padded(value, valid)
        return self._mix(q, keys.values, v, valid, keys.positions)

    def _mix(
        self, q: HiddenStates, k: Keyed, v: Keyed, valid: Valid | None, positions: KeyPositions
    ) -> HiddenStates:
        return self._merge(self.mechanism(**self._project(q, k, v, positions), valid=valid))

    def _attend_nested(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Torch's encoder packs sequences so in eval mode, when it has a padding mask."""
        if key is not query or value is not key:
            raise ValueError(f"nested tensors are for self-attention: {ONE}")
        lengths = [len(row) for row in query.unbind()]
        x = query.to_padded_tensor(0.0)
        real = torch.ones_like(query).to_padded_tensor(0.0)[..., 0].bool()
        out = self._attend(x, x, x, real)
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(out, lengths, strict=True)])

    def _project(self, q: HiddenStates, k: Keyed, v: Keyed, positions: KeyPositions) -> Inputs:
        if k is q and v is k and not self.mechanism.detached_inputs():
            projected = F.linear(q, self.in_proj_weight, self.in_proj_bias).split(self._rows(), dim=-1)
        else:
            given = {"k": k, "v": v} | {name: q.detach() for name in self.mechanism.detached_inputs()}
            sources = [given.get(name, q) for name in self.widths]
            bias = self.in_proj_bias
            biases = [None] * len(sources) if bias is None else bias.split(self._rows())
            projected = map(F.linear, sources, self.in_proj_weight.split(self._rows()), biases)
        inputs = {
            name: x.unflatten(-1, (self._heads(name), width)).transpose(1, 2)
            for (name, width), x in zip(self.widths.items(), projected, strict=True)
        }
        if self.rotary:
            turned = self.mechanism.turned_inputs()
            inputs |= {name: rotate(inputs[name], positions) for name in turned}
        if self.scale is not None:
            default = self.widths["q"] ** -0.5
            inputs |= {name: inputs[name] * (self.scale / default) for name in self.mechanism.score_inputs()}
        if (sharing := self.num_heads // self.kv_heads) > 1:
            inputs |= {name: inputs[name].repeat_interleave(sharing, 1) for name in "kv"}
        return inputs

    def _merge(self, mixed: Outputs) -> HiddenStates:
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, name: str) -> int:
        """Of the input called so. All that is no key or value is one a head."""
        return self.kv_heads if name in ("k", "v") else self.num_heads

    def _rows(self) -> list[int]:
        return [self._heads(name) * width for name, width in self.widths.items()]

    def _check_sources(self, query: HiddenStates, key: Keyed, value: Keyed) -> None:
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
