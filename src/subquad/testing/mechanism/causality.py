"""That the causal form sees no future, and that a stream gives what its sequence gives."""

import torch

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    CHUNKS,
    LENGTH,
    assert_close,
    gradients,
    leaves,
    make,
    map_state,
    padding_masks,
    random_inputs,
    stream,
    tensors,
)


def check_causal_by_gradients(cls: type[Mechanism]) -> None:
    """Output t has no gradient in any later token, and one in its own."""
    mechanism = make(cls, causal=True)
    inputs = random_inputs(mechanism, requires_grad=True)
    causal = inputs if cls.traits.causal == "strict" else {"v": inputs["v"]}  # or value-causal
    out = mechanism(**inputs)
    for t in range(LENGTH):
        for name, gradient in gradients(out[:, :, t], causal).items():
            leak = gradient[:, :, t + 1 :].abs()
            assert not leak.any(), f"output {t} has a gradient up to {leak.max():.2g} in later {name}"
            if name == "v" and cls.traits.causal == "strict":
                assert gradient[:, :, t].any(), f"output {t} does not see its own token"


def check_causal_by_resampling(cls: type[Mechanism]) -> None:
    """Outputs do not change with later inputs, be they large, small or masked."""
    mechanism = make(cls, causal=True)
    changed = mechanism.projections() if cls.traits.causal == "strict" else ["v"]
    for past_scale, future_scale in ((1, 60), (60, 1)):
        inputs = {name: past_scale * x for name, x in random_inputs(mechanism, seed=1).items()}
        other = {name: future_scale * x for name, x in random_inputs(mechanism, seed=2).items()}
        for t in (1, 5, 12, 23):
            future = {
                name: torch.cat([x[:, :, :t], other[name][:, :, t:]], 2) if name in changed else x
                for name, x in inputs.items()
            }
            before = mechanism(**inputs)[:, :, :t]
            assert_close(mechanism(**future)[:, :, :t], before, msg=f"from token {t} on: ".__add__)
            if cls.traits.causal == "strict":
                valid = torch.arange(LENGTH).expand(2, -1) < t
                masked = mechanism(**future, valid=valid)[:, :, :t]
                assert_close(masked, before, msg=f"masked from token {t} on: ".__add__)


def check_stream_equals_sequence(cls: type[Mechanism]) -> None:
    """Chunks of any sizes give the sequence's outputs and gradients, with padding anywhere."""
    mechanism = make(cls, causal=True)
    inputs = random_inputs(mechanism, requires_grad=True)
    targets = leaves(mechanism, inputs)
    for where, valid in {"none": None, **padding_masks()}.items():
        real = torch.ones(2, LENGTH, dtype=torch.bool) if valid is None else valid
        padding = ~real[:, None, :, None]
        sequence = mechanism(**inputs, valid=valid).masked_fill(padding, 0)
        expected = gradients(sequence, targets)
        for chunks in CHUNKS:
            label = f"padding {where}, chunks of {chunks}: ".__add__
            streamed = stream(mechanism, inputs, chunks, valid=valid)[0].masked_fill(padding, 0)
            assert_close(streamed, sequence, msg=label)
            assert_close(gradients(streamed, targets), expected, msg=label)


def check_state_is_batch_first(cls: type[Mechanism]) -> None:
    """A state is a tuple of tensors, batch first: reordering its rows reorders the outputs that follow."""
    mechanism = make(cls, causal=True)
    _, state = mechanism.step(**random_inputs(mechanism, seed=1))
    assert isinstance(state, tuple), f"a state must be a tuple of tensors, not {type(state).__name__}"
    for x in tensors(state):
        assert x.shape[:1] == (2,), f"a tensor of shape {tuple(x.shape)} in the state is not batch first"
    flipped = map_state(lambda x: x.flip(0), state)
    for seed in (2, 3):
        inputs = random_inputs(mechanism, seed=seed)
        out, state = mechanism.step(**inputs, state=state)
        flipped_inputs = {name: x.flip(0) for name, x in inputs.items()}
        flipped_out, flipped = mechanism.step(**flipped_inputs, state=flipped)
        assert_close(flipped_out, out.flip(0))


def check_state_growth(cls: type[Mechanism]) -> None:
    """A bounded state has one size from the first token on; a growing one grows."""
    mechanism = make(cls, causal=True)
    sizes = []
    for length in (1, 64, 256):
        _, state = mechanism.step(**random_inputs(mechanism, length=length))
        sizes.append(sum(x.numel() for x in tensors(state)))
    if cls.traits.state == "bounded":
        assert len(set(sizes)) == 1, f"state of {sizes} numbers after 1, 64 and 256 tokens"
    else:
        assert sizes == sorted(set(sizes)), f"state of {sizes} numbers after 1, 64 and 256 tokens"
