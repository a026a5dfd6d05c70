"""What an attention mechanism is.

Shapes are written with the same letters in every file:

    b batch   t queries   d query/key width   m model width     f features
    h heads   s keys      e value width       c chunk length    r rank, landmarks
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.bounds import require_bounds
from subquad.inputs import (
    Layout,
    declared_widths,
    layout,
    no_autocast,
    overwrite,
    require_inputs,
    require_state,
    require_writable,
    zero_padding,
)
from subquad.shards import Shards

Queries = Float[Tensor, "b h t d"]
Keys = Float[Tensor, "b h s d"]
Values = Float[Tensor, "b h s e"]
Outputs = Float[Tensor, "b h t e"]
Valid = Bool[Tensor, "b s"]  # True at real tokens; padding may stand anywhere
State = Any  # a NamedTuple of tensors, batch first; each mechanism that streams defines its own


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes a mechanism is built for.

    `max_len` is the longest sequence; only mechanisms with weights per position ask for it. `layer` counts
    the layers of a network from 0, for mechanisms that differ from layer to layer.
    """

    heads: int
    head_dim: int
    max_len: int | None = None
    layer: int = 0

    def __post_init__(self) -> None:
        for name, size in (("heads", self.heads), ("head_dim", self.head_dim), ("max_len", self.max_len)):
            if size is not None and size < 1:
                raise ValueError(f"Dims.{name} must be at least 1, not {size!r}")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a mechanism claims. `subquad.testing` checks every claim; none is decoration."""

    name: str  # what users type
    paper: str  # "arXiv:2006.16236"
    family: Literal["exact", "kernel", "sparse", "low rank", "content", "memory", "recurrent", "other"]
    bidirectional: bool = False  # has a form in which every position sees every other
    causal: Literal["strict", "values"] | None = None  # "values": the choice of keys sees the future
    cross: bool = False  # queries and keys may come from different sequences
    state: Literal["bounded", "growing"] | None = None  # memory of `step`; None: cannot stream
    cost: float = 1.0  # work and memory grow no faster than length ** cost
    normalised: bool = False  # the weights of a query sum to one
    limit: Mapping[str, Any] | None = None  # options under which it is softmax attention
    limit_tol: float = 1e-6
    tiny: Mapping[str, Any] = field(default_factory=dict)  # options that suit 24 tokens
    lossless: Mapping[str, Any] | None = None  # options under which a memory forgets none of 24 tokens
    exchange: Literal["edges", "states", "keys"] | None = None  # of ranks that share a sequence; None: cannot

    def __post_init__(self) -> None:
        for name in ("limit", "tiny", "lossless"):  # a frozen claim, all the way down
            if (options := getattr(self, name)) is not None:
                object.__setattr__(self, name, MappingProxyType(dict(options)))


class QueriesKeysValues(NamedTuple):
    """The inputs of a mechanism that names no others."""

    q: Queries
    k: Keys
    v: Values


class Mechanism(nn.Module, ABC):
    """Mixes tokens within each head: `(b h t d), (b h s d), (b h s e) -> (b h t e)`.

    One meaning in three forms: `definition` is the paper's formula, `forward` the fast form for a
    whole sequence, `step` the next chunk of a stream. A mechanism names the inputs it wants in
    `projections` and receives exactly those, by name, in all three. Its options are keyword-only
    scalars whose defaults are the paper's.

    `valid` speaks of keys: where it is False, neither the key nor its value is seen, whatever stands
    there, and real tokens come out as if the padding were not in the sequence at all. A query that
    sees no key gives zeros. Outputs of padded queries are unspecified; where queries and keys are
    equally many, a query at padding that is not finite counts as zero.

    Inputs are float16, bfloat16, float32 or float64; the output has their dtype, and sums are kept
    in float32 at least.

    What all mechanisms do alike is done here, once, around each form that a subclass defines: inputs that
    do not fit `dims`, `projections` and the traits, and states that are not the mechanism's own, are a
    `ValueError` (a compiled `step` looks at inputs only); padding is zeroed, and a query there that is not
    finite; autocast is off; and the output is put into the inputs' dtype. So are options that are not what
    the constructor's signature says (`subquad.bounds`) a `ValueError`.
    """

    traits: ClassVar[Traits]
    inputs: ClassVar[type[tuple[Tensor, ...]]] = QueriesKeysValues  # a NamedTuple of shapes
    heads_multiple: ClassVar[int] = 1  # a number that divides the heads that it is built for
    penalises_weights: ClassVar[bool] = False  # its penalty is of its weights alone, whatever the tokens
    zeros_padding: bool = True  # False: a form gets padding as it comes, and packs or masks it
    _widths: ClassVar[dict[str, int | None]] = declared_widths(QueriesKeysValues)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = bounded(vars(cls)["__init__"])
        renamed = "inputs" in vars(cls)
        if renamed:
            cls._widths = declared_widths(cls.inputs)
        for name in ("definition", "forward", "step", "sharded"):
            form = getattr(cls, name)
            if name in vars(cls) or (renamed and hasattr(form, "__wrapped__")):
                setattr(cls, name, checked(cls, name, inspect.unwrap(form)))

    def __init__(self, dims: Dims, *, causal: bool) -> None:
        """Raise `ValueError` where the traits rule out the form that `causal` asks for."""
        super().__init__()
        form = "causal" if causal else "bidirectional"
        if not getattr(self.traits, form):
            raise ValueError(f"{self.traits.name!r} has no {form} form; build it with causal={not causal}")
        self.dims = dims
        self.causal = causal
        self._initial: dict[torch.dtype, Layout] = {}  # the layout of the state of no token

    def projections(self) -> dict[str, int]:
        """The width per head of each input, by parameter name; `q` comes first and goes by query.

        As `inputs` has them: that of a head, unless the last axis of the shape is a number.
        """
        return {name: width or self.dims.head_dim for name, width in self._widths.items()}

    def members(self) -> Sequence["Mechanism"]:
        """The mechanisms among which its heads are split: itself alone, unless it is a mixture."""
        return [self]

    def score_inputs(self) -> tuple[str, ...]:
        """The inputs in which scores q . k / sqrt(d) are linear on the side of queries.

        A layer multiplies them to scale the scores. Empty where weights are not made of such scores. By
        default those who have softmax attention for a limit have them, and the input is `q`.
        """
        return () if self.traits.limit is None else ("q",)

    def turned_inputs(self) -> tuple[str, ...]:
        """The queries and keys that a layer turns with their positions, for rotary ones.

        Among its inputs and weights these meet one another alone, but for feature maps, gates and a choice of
        keys. Empty where a product of theirs with something else would see positions as they are, and not
        differences. By default they are `q` and `k`, where there is nothing beside them but `v`.
        """
        return ("q", "k") if list(self.projections()) == list("qkv") else ()

    def detached_inputs(self) -> tuple[str, ...]:
        """The inputs that a layer makes of tokens without a gradient into these: only what makes them learns.

        For memories of hidden states that later segments do not teach.
        """
        return ()

    @abstractmethod
    def definition(self, *inputs: Any, valid: Valid | None = None) -> Outputs:
        """The paper's formula, term by term: slow, literal, and the oracle of the tests."""

    @abstractmethod
    def forward(self, *inputs: Any, valid: Valid | None = None) -> Outputs:
        """The same, fast, for a whole sequence."""

    def step(
        self, *inputs: Any, valid: Valid | None = None, state: State | None = None, **named: Any
    ) -> tuple[Outputs, State]:
        """The same, for the next chunk of a stream, of any length. `None` is the state before the first.

        Feeding chunks of any sizes gives what `forward` gives on the whole, gradients included;
        detach the state to stop gradients from flowing into earlier chunks.

        With `in_place=True` the new state is written into the tensors of `state`, which is returned: for
        decoding, and for CUDA graphs, which need what is read and written to stay where it is. No gradient
        may flow through that state, and one that grows needs room for the chunk (`reserve`).

        A mechanism writes its `step` without `in_place`, and the new state is copied over the old; or it
        takes `in_place: bool = False`, and writes there itself as much as it can.
        """
        raise ValueError(f"{self.traits.name!r} {self._why_no_stream()}")

    def sharded(self, *inputs: Any, valid: Valid | None = None, shards: Shards, **named: Any) -> Outputs:
        """The same for a sequence that several processes share (`subquad.parallel`).

        This rank's tokens go in, and come out as from `forward` on the whole, gradients included. What ranks
        exchange is in `traits.exchange`: states, which are as large whatever the length; the edges of their
        shards; or all keys and values.
        """
        raise ValueError(
            f"{self.traits.name!r} needs the whole sequence in one process: take a mechanism that "
            "`subquad.parallel.names()` lists"
        )

    def reserve(self, state: State, tokens: int) -> State:
        """The state with room for so many further tokens of each row, which steps in place fill.

        A bounded state needs none, and is given back.
        """
        if self.traits.state == "growing":
            raise ValueError(
                f"{self.traits.name!r} has no room to reserve: its state grows by being made anew"
            )
        return state

    def penalty(self) -> Float[Tensor, ""]:
        """The mechanism's own loss term from its latest `forward` or `step`; the trainer adds it."""
        return torch.zeros(())

    def update(self) -> None:
        """Learn what gradients do not teach; the trainer calls it after each step of its optimiser."""

    def redraw(self, *, generator: torch.Generator) -> None:
        """Draw the mechanism's random features or patterns anew; nothing happens where none are random."""

    def tie(self, first: "Mechanism") -> None:
        """Share with the network's `first` layer the weights that all its layers have in common, if any."""

    def _why_no_stream(self) -> str:
        if self.traits.state is None:
            return "cannot stream: it has no state; use `forward`"
        return "streams in its causal form only; build it with causal=True"


def bounded(constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor, for options that are what its signature says."""

    @wraps(constructor)
    def within(self: Any, *dims: Any, **options: Any) -> None:
        require_bounds(self.traits.name, constructor, options)
        constructor(self, *dims, **options)

    return within


def checked(owner: type[Mechanism], name: str, form: Callable[..., Any]) -> Callable[..., Any]:
    """The `form` that `owner` has by that name, with what all mechanisms do alike done around it.

    What a subclass hands on to the form of its base is the subclass's matter.
    """

    writes = "in_place" in inspect.signature(form).parameters  # itself, into the tensors of its state

    def fitting(self: Mechanism, *inputs: Any, **named: Any) -> Any:
        if getattr(type(self), name) is not fitting:
            return form(self, *inputs, **named)
        if name == "step" and not self.causal:
            return Mechanism.step(self)  # which refuses
        in_place = "in_place" in named and (named["in_place"] if writes else named.pop("in_place"))
        widths = self.projections()
        tensors = require_inputs(
            self.traits.name,
            inputs,
            named,
            widths=widths,
            heads=self.dims.heads,
            cross=self.traits.cross and not self.causal,
        )
        if len(inputs) < len(tensors):
            named = {option: x for option, x in named.items() if option not in widths}
        dtype, valid, state = tensors[0].dtype, named.get("valid"), named.get("state")
        with no_autocast(tensors[0]):
            if state is not None and not torch.compiler.is_compiling():
                initial = self._initial.get(dtype) or initial_layout(self, form, tensors)
                require_state(self.traits.name, state, initial, self.traits.state == "growing", tensors[0])
            if in_place and state is not None:
                if self.traits.state == "growing" and not writes:
                    self.reserve(state, 0)  # which refuses
                require_writable(self.traits.name, state)
            if valid is not None and self.zeros_padding:
                tensors = zero_padding(valid, *tensors)
            result = form(self, *tensors, **named)
        if name == "step":
            out, after = result
            if in_place and state is not None:
                after = overwrite(state, after)
            return out.to(dtype), after
        return result.to(dtype)

    # the compiler keeps graphs by code, a few for each: forms that shared theirs would use up each other's
    fitting.__code__ = fitting.__code__.replace(co_name=f"{owner.__qualname__}.{name}, checked")
    guarded: Any = wraps(form)(fitting)
    signature = inspect.signature(form)
    me, first, *rest = signature.parameters.values()
    if first.kind is inspect.Parameter.VAR_POSITIONAL:  # all inputs at once: their names are the owner's
        inputs = [me.replace(name=name, annotation=x) for name, x in owner.inputs.__annotations__.items()]
        signature = signature.replace(parameters=[me, *inputs, *rest])
    if name == "step" and not writes:
        in_place = inspect.Parameter("in_place", me.KEYWORD_ONLY, default=False, annotation=bool)
        parameters = sorted([*signature.parameters.values(), in_place], key=lambda x: x.kind)
        signature = signature.replace(parameters=parameters)
    guarded.__signature__ = signature
    return guarded


@torch.no_grad()
def initial_layout(mechanism: Mechanism, step: Callable[..., Any], inputs: Sequence[Tensor]) -> Layout:
    """That of the mechanism's state after no token, for inputs such as these."""
    _, state = step(mechanism, *(x[:1, :, :0] for x in inputs))
    return mechanism._initial.setdefault(inputs[0].dtype, layout(state))
