"""That the causal form sees no future, and that a stream gives what its sequence gives."""

from collections.abc import Iterator

import torch
from torch import Tensor

from subquad.nn import state as states
from subquad.nn.layers.layer import Layer
from subquad.testing.layer.cases import (
    Case,
    Network,
    build_network,
    cases,
    random_tokens,
    stream_network,
    targets_of,
)
from subquad.testing.mechanism.cases import CHUNKS, LENGTH, assert_close, gradients, padding_masks, tensors


def causal_networks(cls: type[Layer], *, streaming: bool) -> Iterator[tuple[Case, Network]]:
    for case in cases(cls):
        if case.causal and (case.claims.state or not streaming):
            yield case, build_network(cls, case)


def masks() -> dict[str, Tensor | None]:
    return {"none": None, "anywhere": padding_masks()["anywhere"]}


def check_no_future_by_gradients(cls: type[Layer]) -> None:
    """Output t has no gradient in any later token, and one in its own."""
    for case, network in causal_networks(cls, streaming=False):
        x = random_tokens(requires_grad=True)
        out = network(x).values
        for t in range(LENGTH):
            gradient = gradients(out[:, t], {"x": x})["x"]
            assert not gradient[:, t + 1 :].any(), f"{case}: output {t} has a gradient in later tokens"
            assert gradient[:, t].any(), f"{case}: output {t} does not see its own token"


def check_no_future_by_resampling(cls: type[Layer]) -> None:
    """Outputs do not change with later tokens, be they large, small or masked."""
    for case, network in causal_networks(cls, streaming=False):
        for past_scale, future_scale in ((1, 60), (60, 1)):
            x, other = past_scale * random_tokens(), future_scale * random_tokens(seed=2)
            before = network(x).values
            for t in (1, 5, 12, 23):
                changed = torch.cat([x[:, :t], other[:, t:]], 1)
                valid = torch.arange(LENGTH).expand(2, -1) < t
                for mask in (None, valid):
                    label = f"{case}, from token {t} on: ".__add__
                    assert_close(network(changed, mask).values[:, :t], before[:, :t], msg=label)


def check_stream_is_sequence(cls: type[Layer]) -> None:
    """Chunks of any sizes give the sequence's outputs and gradients, with padding anywhere."""
    for case, network in causal_networks(cls, streaming=True):
        x = random_tokens(requires_grad=True)
        targets = targets_of(network, x)
        for where, valid in masks().items():
            real = torch.ones(2, LENGTH, dtype=torch.bool) if valid is None else valid
            whole = network(x, valid).values[real]
            expected = gradients(whole, targets)
            for chunks in CHUNKS:
                label = f"{case}, padding {where}, chunks of {chunks}: ".__add__
                streamed = stream_network(network, x, chunks, valid=valid)[0][real]
                assert_close(streamed, whole, msg=label)
                assert_close(gradients(streamed, targets), expected, msg=label)


def check_rows_of_a_stream(cls: type[Layer]) -> None:
    """Rows of a state are reordered, and begin anew, as those of any mechanism."""
    for case, network in causal_networks(cls, streaming=True):
        label = f"{case}: ".__add__
        x = random_tokens(seed=2)
        _, state = network.step(random_tokens())
        out, _ = network.step(x, state=state)
        flipped, _ = network.step(x.flip(0), state=states.reorder(state, torch.tensor([1, 0])))
        assert_close(flipped, out.flip(0), msg=label)
        initial = network.step(x[:, :0])[1]
        reset = states.reset_rows(state, torch.tensor([False, True]), initial=initial)
        anew, _ = network.step(x, state=reset)
        assert_close(anew, torch.cat([out[:1], network(x).values[1:]]), msg=label)


@torch.no_grad()
def check_streams_in_place(cls: type[Layer]) -> None:
    """Steps in place give the numbers of others, and the state's tensors stay where they are."""
    for case, network in causal_networks(cls, streaming=True):
        x = random_tokens()
        for where, valid in masks().items():
            for chunks in CHUNKS:
                label = f"{case}, padding {where}, chunks of {chunks}: ".__add__
                expected, after = stream_network(network, x, chunks, valid=valid)
                _, state = network.step(x[:, :0])
                pairs = zip(network.members(), state.layers, strict=True)
                state = state._replace(layers=tuple(layer.reserve(each, LENGTH) for layer, each in pairs))
                places = [each.data_ptr() for each in tensors(state.layers)]
                out, last = stream_network(network, x, chunks, valid=valid, state=state, in_place=True)
                assert last is not None
                assert [each.data_ptr() for each in tensors(last.layers)] == places, label("a tensor moved")
                real = torch.ones(2, LENGTH, dtype=torch.bool) if valid is None else valid
                assert_close(out[real], expected[real], msg=label)
                further = random_tokens(seed=3)
                ends = (network.step(further, state=each)[0] for each in (last, after))
                assert_close(*ends, msg=label)


def check_size_of_the_state(cls: type[Layer]) -> None:
    """A bounded state has one size from the first token on."""
    for case in cases(cls):
        if case.causal and case.claims.state == "bounded":
            network = build_network(cls, case, max_len=256)
            sizes = {
                length: sum(x.numel() for x in tensors(network.step(random_tokens(length=length))[1]))
                for length in (1, 64, 256)
            }
            assert len(set(sizes.values())) == 1, f"{case}: numbers in the state by tokens: {sizes}"
