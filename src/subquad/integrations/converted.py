"""A mechanism in the place of a pretrained layer's softmax: it gets that layer's queries, keys and values."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, QueriesKeysValues, State, Valid, Values
from subquad.nn.attention_layer import AttentionLayer
from subquad.nn.layers.named import has_whole_layers, layer_by_layer
from subquad.nn.tie import tie_layers
from subquad.registry import build
from subquad.stand_in import require_stand_in

Merged = Float[Tensor, "b t h e"]
SharedKeys = Float[Tensor, "b g s d"]  # g divides h: several heads may share one
SharedValues = Float[Tensor, "b g s e"]


@runtime_checkable
class PretrainedLayer(Protocol):
    """A layer of a model that attends by softmax, as far as `build_mechanisms` asks."""

    @property
    def name(self) -> str: ...

    @property
    def rotary(self) -> bool:
        """Whether queries and keys turn with their positions."""
        ...

    def unsupported(self) -> Iterable[str]:
        """What softmax does in this layer, and no mechanism would."""
        ...


L = TypeVar("L", bound=PretrainedLayer)


class ConvertedAttention(AttentionLayer):
    """What `convert` puts beneath a pretrained layer, as its submodule `subquad`.

    attention: the mechanism's name.
    options: its own.
    heads: of queries.
    head_dim: the width of each.
    causal: whether a token sees none of those after it.
    max_len: the longest sequence, for mechanisms with weights per position.
    layer: its place among the converted ones, from 0.

    Raises `ValueError` for a mechanism that cannot stand in for softmax attention (`subquad.stand_in`).
    """

    def __init__(
        self,
        attention: str,
        options: Mapping[str, Any],
        *,
        heads: int,
        head_dim: int,
        causal: bool,
        max_len: int | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.attention, self.options = attention, dict(options)
        self.dims = Dims(heads=heads, head_dim=head_dim, max_len=max_len, layer=layer)
        self.causal = causal
        self.mechanism = self.build_mechanism()
        require_stand_in(self.mechanism, self.dims, causal=causal)

    def build_mechanism(self) -> Mechanism:
        return build(self.attention, self.dims, causal=self.causal, **self.options)

    def forward(self, q: Queries, k: Keys, v: Values, *, valid: Valid | None) -> Merged:
        """Attention over a whole sequence, or from one to another, of inputs that are `as_softmax`.

        valid: `(b s)`, True at real keys. None: all are.
        """
        return heads_last(self.mechanism(q, k, v, valid=valid))

    def step(
        self, q: Queries, k: Keys, v: Values, *, valid: Valid | None, state: State | None
    ) -> tuple[Merged, State]:
        """The same for the next tokens of a stream, and the state after them; before the first it is None."""
        out, state = self.mechanism.step(q, k, v, valid=valid, state=state)
        return heads_last(out), state

    def extra_repr(self) -> str:
        return f"{self.attention!r}, causal={self.causal}"


def build_mechanisms(
    layers: Iterable[L],
    attention: str,
    options: Mapping[str, Any],
    describe: Callable[[L, str, Mapping[str, Any], int], Mapping[str, Any]],
) -> dict[str, ConvertedAttention]:
    """A mechanism for each layer, by its name; those of a network that mixes them go round.

    describe: from a layer, its mechanism's name and options, and its number, the arguments of a
        `ConvertedAttention`.

    Raises `ValueError` that lists all layers that cannot be converted, and why.
    """
    if has_whole_layers(attention, options):
        raise ValueError(
            f"{attention!r} has a whole layer, and a pretrained one keeps its own around a mechanism"
        )
    layers = list(layers)
    problems: dict[str, list[str]] = defaultdict(list)
    built: dict[str, ConvertedAttention] = {}
    mechanisms = layer_by_layer(attention, options, depth=len(layers))
    for number, (layer, (name, own)) in enumerate(zip(layers, mechanisms, strict=True)):
        reasons = [*layer.unsupported()]
        try:
            built[layer.name] = ConvertedAttention(**describe(layer, name, own, number))
        except ValueError as error:
            reasons.append(str(error))
        else:
            reasons += unfit(built[layer.name], layer)
        for reason in reasons:
            problems[reason].append(layer.name)
    if problems:
        lines = (f"\n  {', '.join(names)}: {reason}" for reason, names in problems.items())
        raise ValueError(f"nothing was converted, for some layers cannot be:{''.join(lines)}")
    tie_layers(built.values())
    return built


def unfit(ours: ConvertedAttention, layer: PretrainedLayer) -> Iterable[str]:
    """Why this mechanism cannot take the place of this layer's softmax."""
    if layer.rotary and not ours.mechanism.turned_inputs():
        yield (
            f"its queries and keys turn with their positions, and {ours.attention!r} has relative positions "
            "of its own, which do not: take another mechanism, or a model with other positions"
        )


def as_softmax(q: Queries, k: SharedKeys, v: SharedValues, scaling: float | None) -> QueriesKeysValues:
    """What plain softmax attention, each head with keys of its own, takes to give what the model's gives.

    scaling: what the model multiplies q . k by. None: 1/sqrt(d).
    """
    if scaling is not None and not math.isclose(scaling, q.shape[-1] ** -0.5, rel_tol=1e-6):
        q = q * (scaling * q.shape[-1] ** 0.5)
    if (sharing := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
    return QueriesKeysValues(q, k, v)


def heads_last(out: Outputs) -> Merged:
    return out.transpose(1, 2).contiguous()
