"""A stack of blocks with positions: whole sequences, streams, and sequences by segments with a memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.bounds import ShareBelowOne
from subquad.config import ModelConfig
from subquad.mechanism import Mechanism, State, Valid
from subquad.nn import state as states
from subquad.nn.attention_layer import AttentionLayer
from subquad.nn.documents import Documents, by_document
from subquad.nn.layers.layer import Layer, LayerConfig
from subquad.nn.layers.named import build_layer, layer_by_layer
from subquad.nn.layers.stack import run_layers, step_layers
from subquad.nn.multihead import Causal, MultiheadAttention
from subquad.nn.positions import HiddenStates, positional_encoding
from subquad.nn.sequence import Sequence, make_sequence
from subquad.nn.sharing import require_shareable
from subquad.nn.tie import tie_layers
from subquad.notation import repeated
from subquad.ops.shared.reuse import one_pass
from subquad.shards import Shards


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """All that an encoder is built from: the options of a model, and its mechanism.

    Unless they are asked for it has no positions and no dropout.

    attention: the mechanism's name, one that `subquad.catalog` lists, or a whole layer's (`nn.layers`). Of a
        network that mixes them, those of its layers with their options, "local:width=128*3+softmax"
        (`subquad.notation`) or a list such as ["local:width=128", "softmax"], over and over; `depth` is a
        multiple of their number.
    options: the mechanism's or the layer's own, by name, where one is named alone.
    causal: False lets every token see all others. True asks for a mechanism that sees nothing of the future;
        "values" accepts one whose choice of keys does.
    max_len: tokens of the longest sequence; learnt positions and some mechanisms ask for it. None: no bound.
    kv_heads: heads of keys and values, each shared by equally many of queries. None: as many as `heads`.
    scale: what scores q . k are multiplied by. None: what the mechanism does by itself.
    """

    attention: str | list[str] = "softmax"
    options: Mapping[str, Any] = field(default_factory=dict)
    causal: Causal = False
    positions: str = "none"
    dropout: ShareBelowOne = 0.0
    max_len: int | None = None
    kv_heads: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attention, str):
            if not self.attention:
                raise ValueError("a list names the mechanism of each layer, and this one is empty")
            object.__setattr__(self, "attention", "+".join(repeated(member, 1) for member in self.attention))
        object.__setattr__(self, "options", dict(self.options))  # ours, and JSON
        if taken := self.options.keys() & signature(MultiheadAttention).parameters.keys():
            raise ValueError(
                f"{min(taken)!r} is the layer's, not an option of {self.attention!r}: take it out"
            )

    def named_layers(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Each layer's name, its mechanism's or its own, and its options.

        Raises `ValueError` where `depth` is no multiple of them.
        """
        assert isinstance(self.attention, str)
        return layer_by_layer(self.attention, self.options, depth=self.depth)

    def layer(self, index: int) -> LayerConfig:
        """What its layer of that number, from 0, is told of the network."""
        return LayerConfig(
            dim=self.dim,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            causal=self.causal,
            rotary=self.positions == "rotary",
            kv_heads=self.kv_heads,
            scale=self.scale,
            max_len=self.max_len,
            index=index,
            depth=self.depth,
        )


class EncoderState(NamedTuple):
    """What an encoder remembers between the chunks of a stream."""

    offset: Int[Tensor, " b"]  # real tokens so far
    blocks: tuple[State, ...]  # the mechanisms' own, layer by layer


class Encoder(nn.Module):
    """Positions, blocks, and a norm at the end: `encoder(x, valid)`, from and to `(b t m)`.

    Whatever stands at padding, even NaN, changes nothing at real tokens; outputs at padding are unspecified.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Raise `ValueError` for what the config asks and the mechanism or the positions cannot do."""
        super().__init__()
        self.config = config
        self.positions = positional_encoding(config.positions, config.dim, max_len=config.max_len)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            build_layer(name, options, config.layer(index))
            for index, (name, options) in enumerate(config.named_layers())
        )
        self.norm = nn.LayerNorm(config.dim)
        self.tie()
        self.register_load_state_dict_post_hook(Encoder._tie)

    def tie(self) -> None:
        """Share the weights that layers of the same mechanism have in common, if any.

        Done when built and loaded; to be done again where parameters were put into the layers one by one.
        """
        tie_layers(module for module in self.modules() if isinstance(module, AttentionLayer))

    def _tie(self, _: Any) -> None:
        self.tie()

    def forward(
        self,
        x: HiddenStates,
        valid: Valid | None = None,
        *,
        documents: Documents | None = None,
        shards: Shards | None = None,
    ) -> HiddenStates:
        """Encode whole sequences: `(b t m) -> (b t m)`.

        valid: True at real tokens; padding may stand anywhere. None: all are real.
        documents: a number for each token, the same for all of a document, where several are packed into a
            row: each is encoded as if it were alone (`nn.documents`), and `penalty` is then that of the
            longest. None: a row is one.
        shards: from `subquad.parallel.share`, where these are one rank's tokens of a sequence that several
            share. None: they are all.
        """
        return self.encode(x, valid, documents=documents, shards=shards).values

    def encode(
        self,
        x: HiddenStates,
        valid: Valid | None = None,
        *,
        documents: Documents | None = None,
        shards: Shards | None = None,
    ) -> Sequence:
        """The same, with what is real of it: layers may give out fewer tokens than they are given.

        x, valid, documents, shards: as `forward` takes them.
        """
        if shards is not None:
            require_shareable(self.layers(), documents)
        if documents is not None:
            return make_sequence(by_document(self.forward, x, valid=valid, documents=documents), valid=valid)[
                0
            ]
        sequence, _ = self._begin(x, valid, None, shards)
        with one_pass():
            sequence = run_layers(self.layers(), sequence)
        return sequence._replace(values=self.norm(sequence.values))

    def step(
        self,
        x: HiddenStates,
        *,
        valid: Valid | None = None,
        state: EncoderState | None = None,
        in_place: bool = False,
    ) -> tuple[HiddenStates, EncoderState]:
        """The next chunk of a stream, of any length, and the state after it.

        Chunks of any sizes give what `forward` gives on the whole. Raises `ValueError` where the mechanism
        cannot stream, and for a state that is not this encoder's or has other rows.

        valid: True at real tokens. None: all are real.
        state: what `step` returned for the chunk before. None: this is the first.
        in_place: the new state takes the place of `state`, as in `Mechanism.step`: for decoding without
            gradients, and for CUDA graphs. See `reserve`.
        """
        states.require_own(state, EncoderState, rows=len(x))
        offset = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.offset
        memories = [None] * len(self.blocks) if state is None else state.blocks
        sequence, offset = self._begin(x, valid, offset)
        with one_pass():
            sequence, later = step_layers(self.layers(), sequence, memories, in_place=in_place)
        offset = state.offset.copy_(offset) if in_place and state is not None else offset
        return self.norm(sequence.values), EncoderState(offset, later)

    def reserve(self, state: EncoderState, tokens: int) -> EncoderState:
        """The state with room for so many further tokens of each row, which steps in place fill.

        Only states that grow with the tokens need any.
        """
        pairs = zip(self.layers(), state.blocks, strict=True)
        return state._replace(blocks=tuple(layer.reserve(memory, tokens) for layer, memory in pairs))

    def segments(
        self, x: HiddenStates, *, valid: Valid | None = None, segment: int, detach: bool = True
    ) -> HiddenStates:
        """The whole sequence, a segment at a time, with the memory carried along: `(b t m) -> (b t m)`.

        `penalty` is then that of the last segment. To use each segment before the next, call `step`.

        valid: True at real tokens. None: all are real.
        segment: tokens at a time, padding included.
        detach: no gradient flows from a segment into earlier ones (truncated back-propagation).
        """
        if segment < 1:
            raise ValueError(f"a segment has at least 1 token, not {segment}")
        outputs, memory = [], None
        for start in range(0, max(x.shape[1], 1), segment):
            here = slice(start, start + segment)
            output, memory = self.step(
                x[:, here], valid=None if valid is None else valid[:, here], state=memory
            )
            memory = states.detach(memory) if detach else memory
            outputs.append(output)
        return torch.cat(outputs, 1)

    def reset_rows(self, state: EncoderState, rows: Bool[Tensor, " b"]) -> EncoderState:
        """The state with the chosen rows as before their first token, so that new streams begin there.

        rows: True for the rows that begin anew.
        """
        return states.reset_rows(state, rows, initial=self.initial_state(len(rows)))

    def initial_state(self, rows: int) -> EncoderState:
        """The state before the first token of each row."""
        return self.step(self.norm.weight.new_zeros(rows, 0, self.config.dim))[1]

    def penalty(self) -> Float[Tensor, ""]:
        """The sum of the mechanisms' own loss terms from their latest use; the trainer adds it."""
        return sum((mechanism.penalty() for mechanism in self.mechanisms()), start=torch.zeros(()))

    def update(self) -> None:
        """Let the mechanisms learn what gradients do not teach; for after each step of the optimiser."""
        for mechanism in self.mechanisms():
            mechanism.update()

    def mechanisms(self) -> Iterator[Mechanism]:
        """Those of all layers, from the first to the last."""
        return chain.from_iterable(layer.mechanisms() for layer in self.layers())

    @property
    def keeps_length(self) -> bool:
        """Whether as many tokens go out as came in."""
        return all(layer.keeps_length for layer in self.layers())

    def layers(self) -> list[Layer]:
        """From the first to the last."""
        return [cast(Layer, block) for block in self.blocks]

    def _begin(
        self,
        x: HiddenStates,
        valid: Valid | None,
        offset: Int[Tensor, " #b"] | None,
        shards: Shards | None = None,
    ) -> tuple[Sequence, Int[Tensor, " #b"]]:
        sequence, offset = make_sequence(x, valid=valid, offset=offset, shards=shards)
        placed = self.positions(sequence.values, sequence.positions)
        return sequence._replace(values=self.dropout(placed)), offset
