"""Triton kernels without a card: interpreted, compiled, and judged by what Triton is known to do wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import subquad
from subquad.ops.triton import availability

pytest.importorskip("triton")
if availability.interpreted():
    pytest.skip("Triton interprets here, and compiles nothing", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.gate import SHARED, Case, Need, cases, check, families, need_of, search
from subquad.ops.triton.launch import kernel, launch, recorded
from subquad.ops.triton.miscompiled import chained_products, transposed_products

INTERPRETED = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", INTERPRETED, ids=lambda path: path.stem)
def test_kernels_are_right_in_the_interpreter(path):
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=path.parents[2])
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@triton.jit
def planted(a, b, c, out, n, FORM: tl.constexpr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    x, y, z = tl.load(a + at), tl.load(b + at), tl.load(c + at)
    p = tl.dot(x, y)
    s, o = tl.zeros((64, 64), tl.float32), tl.zeros((64, 64), tl.float32)
    if FORM == "transposed":
        o = tl.dot(tl.trans(p.to(tl.bfloat16)), z)
    elif FORM == "through arithmetic":
        o = tl.dot((tl.trans(tl.exp2(p)) * y).to(tl.bfloat16), z)
    elif FORM == "through a loop":
        for _ in range(n):
            o += tl.dot(tl.trans(s.to(tl.bfloat16)), z)
            s += tl.dot(x, y)
    elif FORM == "through a branch":
        if n > 3:
            s = tl.trans(p)
        o = tl.dot(s.to(tl.bfloat16), z)
    elif FORM == "through a while":
        while n > 0:
            o += tl.dot(tl.trans(s.to(tl.bfloat16)), z)
            s += p
            n -= 1
    elif FORM == "chained":
        for _ in range(n):
            o += tl.dot(x, y)
            o += tl.dot(y, z)
    elif FORM == "two sums":
        for _ in range(n):
            o += tl.dot(x, y)
            s += tl.dot(y, z)
        o += s
    elif FORM == "sound":
        o = tl.dot(tl.trans(x), tl.trans(p.to(tl.bfloat16))) + tl.dot(p.to(tl.bfloat16), z)
        o += tl.dot((tl.trans(x) * tl.expand_dims(tl.max(p, 1), 0)).to(tl.bfloat16), z)
        o += tl.dot(tl.trans(tl.trans(p)).to(tl.bfloat16), z)
    tl.store(out + at, o)


FAULTS = {
    "transposed": (1, 0),
    "through arithmetic": (1, 0),
    "through a loop": (1, 0),
    "through a branch": (1, 0),
    "through a while": (1, 0),
    "chained": (0, 1),
    "two sums": (0, 0),
    "sound": (0, 0),
}


@pytest.mark.parametrize("form", FAULTS)
def test_what_triton_compiles_wrongly_is_read_off_the_code(form):
    types = {name: "*bf16" for name in ("a", "b", "c")} | {"out": "*fp32", "n": "i32", "FORM": "constexpr"}
    options = {"enable_fp_fusion": True}
    source = ASTSource(planted, types, {(5,): form}, {})
    ttir = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ttir"]
    assert (len(transposed_products(ttir)), len(chained_products(ttir))) == FAULTS[form]


@kernel
def heavy(x, out, n, SIZE: tl.constexpr):
    """Keeps a tile in registers from the first load to the last store."""
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tile = tl.load(x + at)
    for _ in range(n):
        tile = tl.dot(tile, tile, input_precision="tf32")
    tl.store(out + at, tile)


def need(warps):
    x = torch.empty(64, 64, device="meta")
    with recorded(80) as launches:
        launch(heavy, (1,), x, x, 3, config=Config({"SIZE": 64}, warps=warps, stages=2))
    return need_of(launches[0], 80)


def test_a_kernel_that_spills_fails():
    assert not need(warps=4).faults(80)
    assert any("spill" in fault for fault in need(warps=1).faults(80))


def test_a_line_that_fails_goes_on_to_the_next_candidate(tmp_path):
    x = torch.empty(64, 64, device="meta")

    def candidates(*_):
        return [Config({"SIZE": 64}, warps, stages=2) for warps in (1, 4, 8)]

    def calls(*_):
        yield lambda: launch(heavy, (1,), x, x, 3, config=configs.find(heavy, x))

    configs = Configs(tmp_path / "table.json", candidates)
    family, case = Family(configs, calls), Case("heavy", torch.float32, 64, 80)
    configs.add(case.name, {"SIZE": 64, "warps": 1, "stages": 2, "shared": 0})
    assert any("spill" in fault for fault in check(family, case))
    assert search(family, case) == []
    configs.known.clear()  # as another process would begin
    assert configs.lines[case.name]["warps"] == 4
    assert check(family, case) == []


def test_a_line_keeps_what_other_versions_found_of_its_config(tmp_path):
    configs = Configs(tmp_path / "table.json", lambda *_: [])
    line = {"C": 64, "warps": 4, "stages": 2, "shared": 10}
    configs.add("x", {**line, "registers 1": 100})
    configs.add("x", {**line, "shared": 20, "registers 2": 90})
    assert configs.lines["x"] == {**line, "shared": 20, "registers 1": 100, "registers 2": 90}
    configs.add("x", {**line, "C": 32, "registers 2": 80})
    assert configs.lines["x"] == {**line, "C": 32, "registers 2": 80}


def test_a_kernel_that_grows_or_does_not_fit_fails():
    fits = Need(registers=100, spills=0, shared=SHARED[80], wrong=())
    assert not fits.faults(80, registers=100)
    assert fits.faults(80, registers=99) == ["100 registers, no more than 99 before"]
    assert Need(100, 0, SHARED[80] + 1, ()).faults(80)
    assert Need(100, 0, 0, ("tt.dot",)).faults(80)


FAMILIES = dict(families())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_kernel_has_a_line_in_its_table(family):
    assert {case.name for case in cases(family)} <= set(family.configs.lines)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_kernels_take_no_more_than_the_table_says(family):
    """One of each family; .ci/run has all compiled that take bfloat16."""
    assert check(family, next(iter(cases(family)))) == []


@pytest.fixture
def capability(monkeypatch):
    """Whether kernels serve a card, as if this process had just begun."""

    def verdict(capability, version=(3, 6, 0), proven=(), switch=None):
        monkeypatch.setattr(availability, "version", lambda: version)
        monkeypatch.setattr(availability, "PROVEN", frozenset(proven))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.delenv(availability.SWITCH, raising=False)
        if switch is not None:
            monkeypatch.setenv(availability.SWITCH, switch)
        availability.of_capability.cache_clear()
        return availability.of_capability(capability)

    yield verdict
    availability.of_capability.cache_clear()


def test_kernels_serve_where_they_were_proven_and_on_request_elsewhere(capability):
    assert capability((9, 0), proven=[(9, (3, 6, 0))]).reason is None
    unproven = capability((9, 0), proven=[(9, (3, 7, 1))])
    assert "SUBQUAD_TRITON=1" in unproven.reason
    assert unproven.on_request
    assert capability((9, 0), switch="1").reason is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"capability": (9, 0), "switch": "0", "proven": [(9, (3, 6, 0))]}, "SUBQUAD_TRITON=0"),
        ({"capability": (7, 5)}, "compute capability 7.5"),
        ({"capability": (10, 0), "switch": "1"}, "issue 10821"),
        ({"capability": (9, 0), "version": (3, 3, 1), "switch": "1"}, "3.3.1 is too old"),
        ({"capability": (9, 0), "version": "Triton cannot be loaded", "switch": "1"}, "cannot be loaded"),
    ],
)
def test_no_request_overrules_what_cannot_be(capability, given, reason):
    verdict = capability(**given)
    assert reason in verdict.reason
    assert not verdict.on_request


def test_where_there_is_no_triton_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install 'subquad[cuda]'" in str(availability.version.__wrapped__())


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([torch.zeros(1, dtype=torch.float64)], "not torch.float64"),
        ([torch.zeros(1), torch.zeros(1, dtype=torch.float16)], "torch.float32 beside torch.float16"),
        ([torch.zeros(1)], "on CUDA, not on cpu"),
    ],
)
def test_what_kernels_cannot_take_is_said(inputs, reason):
    assert reason in str(availability.why_not(*inputs))


def test_backend_says_what_computes_on_cuda(capability, monkeypatch):
    assert str(subquad.backend()).endswith("CUDA: PyTorch finds no card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    capability((9, 0), switch="1")
    assert str(subquad.backend()).endswith("CUDA: triton: 3.6.0")
    capability((9, 0), switch="0")
    assert "CUDA: torch: SUBQUAD_TRITON=0" in str(subquad.backend())
