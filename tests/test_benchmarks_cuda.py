"""The rows of the suite for a card, rehearsed without one: each to its end, and what is wrong is found."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from subquad.mechanism import Dims
from subquad.mechanisms.linear import LinearAttention
from subquad.mechanisms.sparse import SparseAttention
from subquad.registry import build

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks` is no part of the package

from benchmarks.cuda import checks, plan, rivals, times
from benchmarks.cuda.plan import REHEARSAL, Check, Race
from benchmarks.cuda.targets import FLA, FUSED, WORKS

NAMES = [work.name for work in WORKS]
FORWARD = Race(work="linear-causal", passes="forward", length=4096)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_work_is_checked_and_timed_to_its_end(name):
    work = plan.find(name)
    right = []
    for one in plan.checks(work, quick=True):
        found = dict(checks.numbers(one, REHEARSAL))
        assert found.get("wrong", []) == []
        right += [one.backend] if "errors" in found else []
    assert right
    race = next(race for race in plan.races(work, quick=True) if race.passes != "forward")
    found = times.measured(race, REHEARSAL, {})
    assert {*right, FUSED} <= found["ms"].keys() == found["mb"].keys()
    assert found["missing"].keys().isdisjoint(found["ms"])


def checked(work):
    """What is found of one backend's numbers."""
    found = checks.numbers(Check(work=work, backend="parallel", dtype="bfloat16", width=64), REHEARSAL)
    assert "wrong" in found
    return found


def wrong(work):
    return [what.split(" is off")[0] for what in checked(work)["wrong"]]


def test_a_wrong_output_is_found(monkeypatch):
    forward = LinearAttention.forward
    assert wrong("linear") == []
    monkeypatch.setattr(LinearAttention, "forward", lambda *args, **inputs: 1.1 * forward(*args, **inputs))
    assert "outputs" in wrong("linear")


def test_a_wrong_gradient_is_found(monkeypatch):
    forward = LinearAttention.forward

    def without_keys(self, q, k, v, **more):
        return forward(self, q, k.detach(), v, **more)

    monkeypatch.setattr(LinearAttention, "forward", without_keys)
    assert wrong("linear") == ["gradient of k"]


def test_a_wrong_state_is_found(monkeypatch):
    step = LinearAttention.step

    def forgetful(self, *args, **inputs):
        out, after = step(self, *args, **inputs)
        return out, type(after)(*(0.5 * x for x in after))

    monkeypatch.setattr(LinearAttention, "step", forgetful)
    assert {"outputs of a stream", "single tokens"} <= {*wrong("linear-causal")}


def test_numbers_that_change_from_call_to_call_are_found(monkeypatch):
    calls, forward = [], LinearAttention.forward

    def unsteady(*args, **inputs):
        calls.append(None)
        return forward(*args, **inputs) * (1 + len(calls) % 2 / 128)

    monkeypatch.setattr(LinearAttention, "forward", unsteady)
    assert wrong("linear") == []
    assert "outputs" in checked("linear")["varies"]
    monkeypatch.setattr(checks, "REPEATS", "parallel")
    assert wrong("linear")[0] == "gradient of k differs between two calls"


def test_numbers_that_are_not_finite_are_wrong():
    x = torch.ones(2, 3)
    assert not checks.distance(x.masked_fill(x > 0, torch.nan), x, 1.0, choose=False) <= 1
    assert checks.distance(x, x, 1.0, choose=False) == 0


def test_who_cannot_be_called_is_left_out_and_says_why(monkeypatch):
    def absent(name, *_):
        raise ValueError(f"{name} is not installed")

    monkeypatch.setattr("benchmarks.cuda.contenders.attention_like", absent)
    found = times.measured(FORWARD, REHEARSAL, {})
    assert "is not installed" in found["missing"][FLA]
    assert found["missing"]["triton"].startswith("it refuses: ")
    assert found["ms"].keys() == {"parallel", FUSED}


def test_a_peer_with_other_numbers_is_not_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.cuda.contenders.attention_like", lambda *_: lambda q, k, v: v)
    found = times.measured(FORWARD, REHEARSAL, {})
    assert "off by" in found["missing"][FLA]


@pytest.mark.parametrize(("attention", "causal"), [("local", False), ("local", True), ("bigbird", False)])
def test_the_mask_of_flexattention_is_that_of_the_mechanism(attention, causal):
    options = {"width": 3} if attention == "local" else {"block": 4, "random": 1}
    mechanism = build(attention, Dims(heads=1, head_dim=4), causal=causal, **options)
    assert isinstance(mechanism, SparseAttention)
    lengths = [40, 27]
    seen = rivals.visible(mechanism.pattern, 40, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        i = torch.arange(n)
        assert torch.equal(seen(torch.tensor(b), i[:, None], i), mechanism.pairs(n))


NAIVE = {
    "retention": lambda fla: lambda q, k, v: (
        fla.retention.naive.naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None,
    ),
    "gated-linear": lambda fla: fla.gla.naive.naive_recurrent_gla,
    "gated-delta": lambda fla: lambda q, k, v, g, beta, scale, use_qk_l2norm_in_kernel: (
        fla.gated_delta_rule.naive.naive_recurrent_gated_delta_rule(
            F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, beta=beta, g=g, scale=scale
        )
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # theirs: old forms, no card, no Flash Attention
@pytest.mark.parametrize("attention", NAIVE)
def test_the_recurrences_of_fla_compute_what_ours_do(attention, monkeypatch):
    pytest.importorskip("fla")
    from importlib import import_module

    class Packages:
        def __getattr__(self, name):
            return SimpleNamespace(naive=import_module(f"fla.ops.{name}.naive"))

    naive = NAIVE[attention](Packages())
    names = {
        "retention": "chunk_retention",
        "gated-linear": "chunk_gla",
        "gated-delta": "chunk_gated_delta_rule",
    }
    monkeypatch.setattr(rivals, "import_quietly", lambda _: SimpleNamespace(**{names[attention]: naive}))
    mechanism = build(attention, Dims(heads=2, head_dim=8), causal=True).eval()
    inputs = {name: torch.randn(2, 2, 20, width) for name, width in mechanism.projections().items()}
    theirs = rivals.attention_like(FLA, mechanism, 20, torch.tensor([20]))(**inputs)
    torch.testing.assert_close(theirs, mechanism(**inputs), rtol=1e-3, atol=1e-4)


def aligned(x):
    """With memory, in place of an input on the meta device."""
    if isinstance(x, tuple):
        return tuple(map(aligned, x))
    return torch.empty(1, dtype=x.dtype) if isinstance(x, torch.Tensor) else x


@pytest.mark.slow
def test_kernels_are_compiled_as_they_are_launched(monkeypatch, tmp_path):
    driver = pytest.importorskip("triton.runtime").driver
    from triton.backends.compiler import GPUTarget

    from benchmarks.cuda.compilation import compiled
    from subquad.ops.triton import gate
    from subquad.ops.triton.launch import OPTIONS

    card = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
    )
    family = dict(gate.families())["recurrence.triton_steps"]
    launch, *_ = gate.launches_of(family, torch.bfloat16, 64, 90)
    monkeypatch.setattr(gate, "families", lambda: [("", family)])
    monkeypatch.setattr(gate, "launches_of", lambda *_: [launch])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(driver, "_active", card)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel: Any = launch.kernel
    assert compiled(plan.Compilation(dtype="bfloat16", width=64, share=0, of=1)) == {"kernels": 1}
    before = set(tmp_path.iterdir())
    kernel.device_caches.clear()  # it knows nothing but what lies in files
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, **OPTIONS}
    inputs = map(aligned, launch.inputs)
    kernel.run(*inputs, grid=launch.grid, warmup=True, **launch.constants, **options)
    kernel.device_caches.clear()
    assert before == set(tmp_path.iterdir()) != set()
