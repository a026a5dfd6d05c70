"""That one graph serves all batches and lengths, so that models can be exported, and are compiled once."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import DIMS, Tensors, assert_close, each_form, random_inputs

TRACED = (3, 21)  # batch and length that a graph is traced with
SERVED = ((2, 5), (4, 90), (2, 200))  # and those that it has to serve
COMPILED_LENGTHS = (21, 33, 40, 55, 17)
MAX_GRAPHS = 3  # for five lengths: one for the first, one for all, one spare


class Exportable(nn.Module):
    """A mechanism as the model that is exported, with a mask or without."""

    def __init__(self, mechanism: Mechanism, *, masked: bool) -> None:
        super().__init__()
        self.mechanism, self.masked = mechanism, masked

    def forward(self, inputs: Tensors, valid: Tensor) -> Tensor:
        return self.mechanism(**inputs, valid=valid if self.masked else None)


def check_exports_with_dynamic_lengths(cls: type[Mechanism]) -> None:
    """Exported with dynamic batch and length it gives the same outputs, or a ValueError says why not."""
    for mechanism in each_form(cls):
        for model, program in exported(mechanism.eval()):
            for batch, length in SERVED:
                inputs, valid = sample(mechanism, batch, length)
                real = valid[:, None, :, None] if model.masked else torch.ones(())
                label = f"{batch} x {length}: ".__add__
                assert_close(program(inputs, valid) * real, model(inputs, valid) * real, msg=label)


def check_compiles_with_dynamic_lengths(cls: type[Mechanism]) -> None:
    """What can be exported for all lengths is compiled a few times at most, however many lengths it meets."""
    for mechanism in each_form(cls):
        if next(exported(mechanism.eval()), None) is None:
            continue
        torch.compiler.reset()
        graphs: list[Any] = []
        compiled = torch.compile(mechanism, fullgraph=True, backend=recording_compiler(graphs))
        for length in COMPILED_LENGTHS:
            inputs = random_inputs(mechanism, length=length)
            assert_close(compiled(**inputs), mechanism(**inputs))
        assert len(graphs) <= MAX_GRAPHS, f"{len(graphs)} graphs for {len(COMPILED_LENGTHS)} lengths"


def exported(mechanism: Mechanism) -> Iterator[tuple[Exportable, Callable[..., Tensor]]]:
    """Without a mask and with one, the model and the exported program; nothing where it is refused."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=DIMS.max_len)
    inputs = {name: {0: batch, 2: length} for name in mechanism.projections()}
    for masked in (False, True):
        model = Exportable(mechanism, masked=masked)
        try:
            program = torch.export.export(
                model,
                sample(mechanism, *TRACED),
                dynamic_shapes={"inputs": inputs, "valid": {0: batch, 1: length}},
                strict=False,
            )
        except ValueError as error:
            if not str(error):
                raise AssertionError("the error has no message") from error
            continue
        yield model, program.module()


def sample(mechanism: Mechanism, batch: int, length: int) -> tuple[Tensors, Tensor]:
    valid = torch.arange(length).expand(batch, -1) % 5 != 2
    return random_inputs(mechanism, batch=batch, length=length), valid


def recording_compiler(graphs: list[Any]) -> Callable[..., Any]:
    """A `torch.compile` backend that collects the graphs, and runs them uncompiled."""

    def record(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    return record


check_exports_with_dynamic_lengths.slow = True  # type: ignore[attr-defined]
check_compiles_with_dynamic_lengths.slow = True  # type: ignore[attr-defined]
