"""What one may do with a stream's state without knowing whose it is.

A state is a nested tuple or NamedTuple of tensors, batch first. States that grow keep beside what they
remember how many tokens of each row that is, so that zeros stand for nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.mechanism import State
from subquad.ops.shared.slots import KVCache

S = TypeVar("S")  # the state of any mechanism, layer or encoder


class Stream(NamedTuple):
    """What a layer remembers between the chunks of a stream."""

    offset: Int[Tensor, " b"]  # real tokens so far
    memory: State  # the mechanism's own


def require_own(state: Any, kind: type, *, rows: int) -> None:
    """Raise `ValueError` unless a state, or None, is of this kind and has an offset for each row."""
    if state is None:
        return
    if not isinstance(state, kind):
        raise ValueError(
            f"the state is a {type(state).__name__}, and must be the {kind.__name__} that `step` returned, "
            "or None to begin anew"
        )
    if len(state.offset) != rows:
        raise ValueError(
            f"the state has {len(state.offset)} rows and the input {rows}: choose the state's rows with "
            "`reorder`, or begin anew with None"
        )


def detach(state: S) -> S:
    """The same state, without the gradients into what it has seen."""
    return _map(Tensor.detach, state)


def reorder(state: S, index: Int[Tensor, " n"]) -> S:
    """Row i of the result is row `index[i]`: for beams, or for a batch whose streams come and go."""
    return _map(lambda leaf: leaf.index_select(0, index), state)


def reset_rows(state: S, rows: Bool[Tensor, " b"], *, initial: S) -> S:
    """The state with the chosen rows as before their first token.

    `initial` is the state after no token at all: what `step` gives for a chunk of length zero.
    """

    def pick(leaf: Tensor, initial_leaf: Tensor) -> Tensor:
        chosen = rows.unflatten(0, (-1,) + (1,) * (leaf.ndim - 1))
        return padded_to(initial_leaf, leaf).to(leaf.dtype).where(chosen, leaf)

    return _map(pick, state, initial)


def trim(state: S) -> S:
    """The same state without the room behind the longest row, which rows that are reset leave; looks at
    numbers. What a mechanism keeps beside a cache is trimmed by its next step.
    """
    if isinstance(state, KVCache):
        longest = max(state.count.tolist(), default=0)
        return state._replace(k=state.k[:, :, :longest], v=state.v[:, :, :longest])
    if not isinstance(state, tuple):
        return state
    return _like(state, map(trim, state))


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, always in the same order."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in leaves(part)]


def rebuild(state: S, tensors: Iterable[Tensor]) -> S:
    """A state like that one, of the tensors that `leaves` gave."""
    following = iter(tensors)
    return _map(lambda _: next(following), state)


def padded_to(x: Tensor, like: Tensor) -> Tensor:
    """`x`, with zeros (False) up to the size of `like`."""
    missing = [wanted - had for wanted, had in zip(like.shape, x.shape, strict=True)]
    return F.pad(x, [amount for size in reversed(missing) for amount in (0, size)])


def _map(change: Callable[..., Tensor], state: S, *others: S) -> S:
    if isinstance(state, Tensor):
        return change(state, *others)
    if not isinstance(state, tuple):
        raise TypeError(f"a state is a nested tuple of tensors, and holds no {type(state).__name__}")
    return _like(state, (_map(change, *parts) for parts in zip(state, *others, strict=True)))


def _like(state: Any, parts: Iterable[Any]) -> Any:
    """A tuple of the same type."""
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
