"""What a memory promises beside what every mechanism does: how much it forgets, and who learns from whom."""

import inspect
from dataclasses import replace

import torch
from torch import Tensor

from subquad.mechanism import Mechanism, State
from subquad.nn.state import reorder, reset_rows
from subquad.testing.mechanism import causality, meaning
from subquad.testing.mechanism.cases import (
    LENGTH,
    Tensors,
    assert_close,
    gradients,
    leaves,
    make,
    padding_masks,
    random_inputs,
    stream,
    tensors,
)

LONG_CHUNKS = (256,) * 8


def can_detach(cls: type[Mechanism]) -> bool:
    """Whether it has segments, and an option that stops gradients between them."""
    return {"segment", "detach"} <= inspect.signature(cls.__init__).parameters.keys()


def check_segments_equal_one_long_pass(cls: type[Mechanism]) -> None:
    """Where the memory is long enough, its segments give the outputs and gradients of one that holds all."""
    options = dict(cls.traits.lossless or {})
    several, one = (
        make(cls, causal=True, **{**options, "segment": segment}) for segment in (options["segment"], LENGTH)
    )
    one.load_state_dict(several.state_dict())
    inputs = random_inputs(several, requires_grad=True)
    for where, valid in {"none": None, **padding_masks()}.items():
        label = f"padding {where}: ".__add__
        outs = [real(mechanism(**inputs, valid=valid), valid) for mechanism in (several, one)]
        assert_close(*outs, msg=label)
        found = [gradients(out, leaves(m, inputs)) for out, m in zip(outs, (several, one), strict=True)]
        assert_close(*found, msg=label)


def check_gradients_stop_between_segments(cls: type[Mechanism]) -> None:
    """With `detach` outputs are the same, and no key or value learns from a segment after its own.

    What a layer makes of tokens without a gradient (`detached_inputs`) may.
    """
    options = {**cls.traits.tiny, "detach": True}
    free, stopping = make(cls, causal=True), make(cls, causal=True, **options)
    stopping.load_state_dict(free.state_dict())
    inputs = random_inputs(stopping, requires_grad=True)
    out = stopping(**inputs)
    assert_close(out, free(**inputs))
    kept = {name: inputs[name] for name in inputs.keys() - {"q", *stopping.detached_inputs()}}
    segment = options["segment"]
    for start in range(0, LENGTH, segment):
        for name, gradient in gradients(out[:, :, start : start + segment], kept).items():
            earlier = gradient[:, :, :start].abs()
            assert not earlier.any(), (
                f"the segment from token {start} on gives earlier {name} a gradient up to {earlier.max():.2g}"
            )
            assert gradient[:, :, start:].any(), (
                f"the segment from token {start} on has none in its own {name}"
            )
    variant = type(cls.__name__, (cls,), {"traits": replace(cls.traits, tiny=options)})
    meaning.check_matches_definition(variant)
    causality.check_stream_equals_sequence(variant)


def check_module_remembers_nothing(cls: type[Mechanism]) -> None:
    """What was seen is in the state alone: between calls with other sequences a call gives the same bits."""
    mechanism = make(cls, causal=True)
    inputs, others = random_inputs(mechanism), random_inputs(mechanism, batch=3, length=17, seed=2)
    before = [x.clone() for x in mechanism.buffers()]

    def through_both() -> list[Tensor]:
        out, state = mechanism.step(**inputs)
        given = [x.clone() for x in tensors(state)]
        mechanism.step(**others)
        later, _ = mechanism.step(**inputs, state=state)
        for x, was in zip(tensors(state), given, strict=True):
            assert torch.equal(x, was), "a step changes the state that it is given"
        return [mechanism(**inputs), out, later]

    first = through_both()
    mechanism(**others)
    for x, again in zip(first, through_both(), strict=True):
        assert torch.equal(x, again), f"other sequences change an output by {(x - again).abs().max():.2g}"
    for x, was in zip(mechanism.buffers(), before, strict=True):
        assert torch.equal(x, was), "a buffer of the module changes"


@torch.no_grad()
def check_rows_reset_and_reorder(cls: type[Mechanism]) -> None:
    """A row that is reset is as new, and rows in another order, or twice, are the streams in that order."""
    mechanism = make(cls, causal=True)
    _, initial = mechanism.step(**random_inputs(mechanism, length=0))
    for length in (1, 13, LENGTH):
        label = f"after {length} tokens: ".__add__
        past = random_inputs(mechanism, length=length)
        _, state = mechanism.step(**past)
        reset = reset_rows(state, torch.tensor([True, False]), initial=initial)
        mixed, fresh, carried = (further(mechanism, x, rows=[0, 1]) for x in (reset, None, state))
        assert_close(mixed, torch.cat([fresh[:1], carried[1:]]), msg=label)
        rows = [1, 0, 1]
        reordered = further(mechanism, reorder(state, torch.tensor(rows)), rows=rows)
        assert_close(reordered, carried[rows], msg=label)


@torch.no_grad()
def check_state_stays_constant(cls: type[Mechanism]) -> None:
    """Over 2,048 tokens the state keeps its size, and holds no more of a chunk's memory than it needs."""
    mechanism = make(cls, causal=True)
    _, state = mechanism.step(**random_inputs(mechanism, length=0))
    shapes = [x.shape for x in tensors(state)]
    size = sum(x.nbytes for x in tensors(state))
    for seed, length in enumerate(LONG_CHUNKS):
        out, state = mechanism.step(**random_inputs(mechanism, length=length, seed=seed), state=state)
        assert out.isfinite().all(), f"chunk {seed} of {length} tokens: not finite"
        found = [x.shape for x in tensors(state)]
        assert found == shapes, f"chunk {seed} of {length} tokens: {found}, not {shapes}"
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(state)}
        held = sum(storages.values())
        assert held <= 2 * size, f"a state of {size} bytes keeps {held} from being freed"


def further(mechanism: Mechanism, state: State | None, *, rows: list[int]) -> Tensor:
    """What the next three chunks of these rows' streams give."""
    inputs: Tensors = {name: x[rows] for name, x in random_inputs(mechanism, seed=2).items()}
    return stream(mechanism, inputs, [1, 6, 17], state=state)[0]


def real(out: Tensor, valid: Tensor | None) -> Tensor:
    return out if valid is None else out.masked_fill(~valid[:, None, :, None], 0)
