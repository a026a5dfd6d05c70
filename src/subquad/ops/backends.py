"""Which backend serves a call of an operator, and why the others refuse: one place.

An operator is a folder of `ops/`, and its backends are modules in it:

    __init__.py     the function, the type of its calls, its custom op, and the order of its backends
    reference.py    the backend in PyTorch, for any device and dtype, which all others are held against
    cpu.py, ...     faster ones, which refuse what they cannot do

    BACKENDS = Backends[Call](__name__, "cpu", "reference")

    @torch.library.custom_op("subquad::linear_attention", mutates_args=())
    def _forward(q, k, v, causal):
        index, result = BACKENDS.run("forward", Call(q, k, v, causal))
        return *result, torch.tensor(index)

    @torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
    def _backward(grad, q, k, v, causal, out, lse, index):
        return BACKENDS[index].backward(grad, Call(q, k, v, causal), Result(out, lse))

The choice is made in the operator's body, at run time, compiled or not. Its index is one of the operator's
outputs (of fake tensors `torch.empty((), dtype=torch.int64)`), by which the backward pass has the same one.

A function above operators (`patterns/pattern_attention/`) chooses as they do, outside of any operator, and
its backends have no `backward`: PyTorch differentiates what they do.

Another package adds a backend by an entry point, named after the operator. It is asked before ours:

    [project.entry-points."subquad.backends"]
    "linear_attention.mine" = "my_package.my_module"
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from subquad.ops.native.library import Kernels

Call = TypeVar("Call")

_wanted: ContextVar[str | None] = ContextVar("wanted", default=None)
_choices: ContextVar["list[Choice] | None"] = ContextVar("choices", default=None)


@runtime_checkable
class Backend(Protocol):
    """A module, or any object, that computes an operator, whose own types calls and results are of."""

    def refuses(self, call: Any) -> str | None:
        """Why it cannot serve this call, and the remedy where there is one; None: it can."""
        ...

    def forward(self, call: Any) -> Any:
        """The result; None where only its numbers tell that another backend has to do it."""
        ...

    def backward(self, grad: Any, call: Any, result: Any) -> Any:
        """The gradients of the call's inputs, from those of its outputs."""
        ...


class Unavailable(Exception):
    """Raised by a backend that cannot be built on this machine: the next one serves, with one warning."""


class Refused(ValueError):
    """No backend serves a call; `reasons` are theirs by name."""

    def __init__(self, operator: str, reasons: dict[str, str]) -> None:
        super().__init__("no backend serves this call of " + str(Choice(operator, "none", reasons)))
        self.reasons = reasons


class Choice(NamedTuple):
    """Which backend served a call, and why those before it refused."""

    operator: str
    backend: str
    refusals: dict[str, str]

    def __str__(self) -> str:
        refusals = (f"\n  {name} refuses: {reason}" for name, reason in self.refusals.items())
        return f"{self.operator}: {self.backend}" + "".join(refusals)


class Choices(tuple[Choice, ...]):
    """What `backend` found, to be printed."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


class Backends(Generic[Call]):
    """The backends of an operator in the order in which they are asked; they are loaded at the first call."""

    functions: tuple[str, ...] = ("refuses", "forward", "backward")  # what a backend has, at least

    def __init__(self, package: str, *names: str) -> None:
        """`names` are modules of the operator's `package`; the last one takes every call."""
        self.package, self.names = package, names
        self.operator = package.rpartition(".")[2]

    def run(self, form: str, call: Call, *more: Any) -> tuple[int, Any]:
        """What the first backend that does not refuse gives as its `form`, and the index of that backend."""
        refusals, choices = {}, _choices.get()
        place = 0 if choices is None else len(choices)
        for index, (name, backend) in enumerate(self.loaded):
            try:
                reason = self.refusal(name, backend, form, call)
                if reason is None:
                    result = getattr(backend, form)(call, *more)
                    if result is not None:
                        if choices is not None:  # before the choices of operators that it is made of
                            choices.insert(place, Choice(self.operator, name, refusals))
                        return index, result
                    reason = "these numbers leave the range in which it is exact"
            except Unavailable as error:
                self.loaded[index] = name, Lost(reason := str(error))
                warn_once(name, reason)
            refusals[name] = reason
        raise Refused(self.operator, refusals)

    def first(self, form: str, call: Call) -> str | None:
        """The name of the backend that `run` would begin with."""
        names = (name for name, backend in self.loaded if self.refusal(name, backend, form, call) is None)
        return next(names, None)

    def refusal(self, name: str, backend: Any, form: str, call: Call) -> str | None:
        """Why a backend does not serve, for its own reasons or for ours."""
        if (reason := self.unwanted(name)) is not None:
            return reason
        return backend.refuses(call) if hasattr(backend, form) else f"it has no {form!r}"

    def unwanted(self, name: str) -> str | None:
        """That `using` asks for another, where it does."""
        wanted = _wanted.get()
        return None if wanted is None or wanted == name else f"using({wanted!r}) asks for another"

    def __getitem__(self, index: int | Tensor) -> Backend:
        """The backend with the index that `run` gave."""
        return self.loaded[int(index)][1]

    @cached_property
    def loaded(self) -> list[tuple[str, Any]]:
        plugins = (loaded_plugin(name, entry, self.functions) for name, entry in plugins_of(self.operator))
        return [*plugins, *((name, self.module(name)) for name in self.names)]

    def module(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")


class Composite(Backends[Call]):
    """The backends of a function above operators. PyTorch differentiates them: none has a `backward`.

    The last one is made of operators, which choose for themselves. So `using` may name a backend of theirs.
    """

    functions = ("refuses", "forward")

    def __init__(self, package: str, *names: str) -> None:
        super().__init__(package, *names)

        @torch.compiler.assume_constant_result  # neither context variables nor entry points can be traced
        def allowed() -> tuple[int, ...]:
            return tuple(n for n, (name, _) in enumerate(self.loaded) if self.unwanted(name) is None)

        self.allowed = allowed

    def serve(self, call: Call) -> Any:
        """What the first backend that does not refuse gives; in a graph, that of the time of its tracing."""
        if not torch.compiler.is_compiling():
            return self.run("forward", call)[1]
        for index in self.allowed():
            _, backend = self.loaded[index]
            if backend.refuses(call) is None:
                return backend.forward(call)
        raise ValueError("the backend that `using` asks for refuses this call: run it uncompiled to see why")

    def confirm(self, name: str, call: Call | None = None) -> None:
        """Called by a graph that has the backend `name`, when it runs; with `call` to explain the choice.

        Raises `Refused` where `using` asks for another by now.
        """
        if (reason := self.unwanted(name)) is not None:
            raise Refused(self.operator, {name: f"{reason}, and the graph has this one: compile it within"})
        if (choices := _choices.get()) is not None:
            refusals = {}
            for other, backend in self.loaded:
                if other == name or call is None:
                    break
                reason = self.refusal(other, backend, "forward", call)
                refusals[other] = reason or "the graph was traced without it"
            choices.append(Choice(self.operator, name, refusals))

    def unwanted(self, name: str) -> str | None:
        reason, names = super().unwanted(name), [own for own, _ in self.loaded]
        return None if name == names[-1] and _wanted.get() not in names else reason


class Lost:
    """In the place of a backend that could not be loaded or built."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def refuses(self, call: Any) -> str:
        return self.reason

    def forward(self, call: Any) -> None:
        raise AssertionError("a backend that is lost refuses every call")

    backward: Any = forward


def plugins_of(operator: str) -> list[tuple[str, EntryPoint]]:
    """The backends that other packages add to an operator, by name, not loaded as yet."""
    split = ((entry.name.rpartition("."), entry) for entry in entry_points(group="subquad.backends"))
    return sorted((name, entry) for (whose, _, name), entry in split if whose == operator)


def loaded_plugin(name: str, entry: EntryPoint, functions: tuple[str, ...]) -> tuple[str, Any]:
    """Other people's code may fail in any way: then the rest works."""
    try:
        backend = entry.load()
        if all(hasattr(backend, function) for function in functions):
            return name, backend
        reason = f"{entry.value!r} is no backend, which has {', '.join(functions)}"
    except Exception as error:
        reason = f"{entry.value!r} cannot be loaded: {error}"
    warn_once(name, reason)
    return name, Lost(reason)


@cache
def warn_once(name: str, reason: str) -> None:
    """Say what is lost, and by which remedy it is not."""
    warnings.warn(f"slower without the backend {name!r}: {reason}", RuntimeWarning, stacklevel=2)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Within, in this thread, every call is served by the backend called `name`, "reference" for example.

    A call that it refuses, or whose operator has none of that name, raises `ValueError`.
    """
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> str | None:
    """The name that `using` asks for here."""
    return _wanted.get()


@overload
def backend() -> "Kernels": ...
@overload
def backend(function: Callable[..., Any], *inputs: Any, **named: Any) -> Choices: ...
def backend(function: Callable[..., Any] | None = None, *inputs: Any, **named: Any) -> "Kernels | Choices":
    """Which backend serves a call of an operator, a mechanism or a model, and why the others refuse.

    `backend(function, *inputs, **named)` calls the function, and gives the choices that operators made on the
    way, once each. `backend()` says what computes on this machine, compiled kernels or PyTorch.
    """
    if function is None:
        return import_module("subquad.ops.native.library").kernels_in_use()
    token = _choices.set(made := [])
    try:
        function(*inputs, **named)
    finally:
        _choices.reset(token)
    return Choices(choice for n, choice in enumerate(made) if choice not in made[:n])
