"""One cell of the bench."""

import json
import math
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.measure import cost as bench
from subquad.measure import peers
from subquad.measure.cost import cost
from subquad.measure.peers import Peer
from subquad.mechanism import Dims, Mechanism, Traits
from subquad.mechanisms.linear import LinearAttention
from subquad.registry import find

CELL = {
    "attention": "linear",
    "options": {},
    "causal": False,
    "length": 96,
    "heads": 2,
    "head_dim": 4,
    "batch": 1,
    "seconds": 0,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cell_has_times_and_memory_of_both(dtype):
    measured = json.loads(json.dumps(cost(**CELL, dtype=dtype)))
    assert set(measured) == {"forward", "forward_backward", "memory"}
    assert set(measured["memory"]) == {"mb", "reference_mb", "method"}
    for timed in (measured["forward"], measured["forward_backward"]):
        assert timed["roofline_ms"] > 0
        for timing in (timed["ms"], timed["reference_ms"]):
            assert timing.keys() == {"median", "low", "high", "repeats"}
            assert 0 < timing["low"] <= timing["median"] <= timing["high"]


def test_a_cell_without_backward_has_forward_times_only():
    assert set(cost(**CELL, backward=False)) == {"forward", "memory"}


def test_work_beyond_what_is_counted_goes_on_as_the_mechanism_claims(monkeypatch):
    monkeypatch.setattr(bench, "COUNTED", (32, 64))
    for name, grown in (("linear", 3), ("softmax", 9)):
        mechanism = find(name)(Dims(heads=1, head_dim=4), causal=False)
        inputs = {key: torch.randn(1, 1, 192, 4) for key in ("q", "k", "v")}
        candidate = bench.Candidate(mechanism, inputs)
        operation = bench.Candidate.forward
        counted = bench.work(operation, candidate.shortened(64), mechanism, 64)
        assert bench.work(operation, candidate, mechanism, 192).flops == pytest.approx(grown * counted.flops)


def test_peers_are_timed_only_if_they_are_requested_and_serve(monkeypatch):
    mine = Peer(name="mine", modules=("torch",), package="", attention=("linear",), causal=None,
                build=lambda mechanism, length: lambda q, k, v: q + k + v)  # fmt: skip
    broken = replace(mine, name="broken", build=lambda mechanism, length: lambda q, k, v: q / None)
    monkeypatch.setattr(peers, "PEERS", {"mine": mine, "broken": broken})
    measured = cost(**CELL, peers=True)
    assert [set(measured[name]["peers_ms"]) for name in ("forward", "forward_backward")] == [{"mine"}] * 2
    assert cost(**CELL)["forward"]["peers_ms"] == {}


def test_the_definition_is_never_timed(monkeypatch):
    def definition(self: Mechanism, *inputs: Tensor, valid: Tensor | None = None) -> Tensor:
        raise AssertionError("timed")

    monkeypatch.setattr(LinearAttention, "definition", definition)
    cost(**CELL)


@pytest.mark.parametrize("causal", [True, False])
def test_the_baseline_is_fused_attention_with_the_same_causality(monkeypatch, causal):
    asked = set()

    def spy(query: Tensor, key: Tensor, value: Tensor, **given: bool) -> Tensor:
        asked.add(tuple(given.items()))
        return query + key + value

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    cost(**{**CELL, "causal": causal})
    assert asked == {(("is_causal", causal),)}


class Probe(Mechanism):
    """Writes down how it is called."""

    traits = Traits(name="probe", paper="none", family="other", bidirectional=True)

    def __init__(self, dims: Dims, *, causal: bool, gain: float = 1.0) -> None:
        super().__init__(dims, causal=causal)
        self.gain = nn.Parameter(torch.tensor(gain))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.calls: list[tuple[bool, bool, int, int]] = []

    def projections(self) -> dict[str, int]:
        return {"v": 3, "gate": 1}

    def definition(self, v: Tensor, gate: Tensor, *, valid: Tensor | None = None) -> Tensor:
        raise AssertionError("timed")

    def forward(self, v: Tensor, gate: Tensor, *, valid: Tensor | None = None) -> Tensor:
        assert (v.shape[-1], gate.shape[-1]) == (3, 1)
        self.calls.append((self.training, torch.is_grad_enabled(), v.shape[0], v.shape[2]))
        return self.gain * self.frozen * gate * v


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[Probe]:
    built: list[Probe] = []

    def build(name: str, dims: Dims, *, causal: bool, **options: float) -> Probe:
        built.append(Probe(dims, causal=causal, **options))
        return built[-1]

    monkeypatch.setattr(bench, "build", build)
    return built


def test_training_is_timed_in_training_mode_and_inference_in_eval_mode(probe):
    cost(**{**CELL, "batch": 3})
    calls = [call for call, _ in groupby(probe[0].calls)]
    assert calls == [
        (True, True, 3, 64),  # warming up
        (True, True, 3, 96),  # memory
        (True, False, 3, 96),  # is it finite?
        (True, True, 3, 96),
        (False, False, 3, 96),
    ]


@pytest.mark.usefixtures("probe")
def test_an_output_that_is_not_finite_is_said_to_be():
    with pytest.raises(FloatingPointError, match="'linear' gives numbers that are not finite at length 96"):
        cost(**{**CELL, "options": {"gain": math.nan}})


@pytest.mark.parametrize("dtype", ["float33", "int64", "nn"])
def test_a_dtype_must_be_of_floating_point(dtype):
    with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'; give 'float32'"):
        cost(**CELL, dtype=dtype)
