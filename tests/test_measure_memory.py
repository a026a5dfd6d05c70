"""That memory is counted right, and measured right."""

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from subquad.measure import memory
from subquad.measure.memory import peak_bytes, peak_memory, process_peak_mb

MODES = (torch.inference_mode, torch.no_grad, torch.enable_grad)
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
Q, K, V = torch.ones(2, 3, 16, 4), torch.ones(2, 3, 20, 4), torch.ones(2, 3, 20, 4)
FLOATS = 1000  # in a tensor of 4,000 bytes
LARGE = 16_000_000  # floats; a block so large is always the system's own


@modes
def test_views_and_in_place_results_count_once(mode):
    def compute() -> Tensor:
        x = torch.ones(FLOATS)
        return x.reshape(10, -1).mT.add_(1)[2:].detach()

    with mode():
        assert peak_bytes(compute) == 4 * FLOATS


@modes
def test_what_existed_before_does_not_count(mode):
    x, hidden = torch.ones(FLOATS), torch.ones(FLOATS)

    def compute(x: Tensor) -> Tensor:
        x.add_(hidden[:10].sum())
        return x.view(10, -1).mT

    with mode():
        assert peak_bytes(compute, x=x) == 4  # the sum


@modes
def test_what_died_counts_no_more(mode):
    def compute() -> None:
        for _ in range(5):
            torch.ones(FLOATS).exp_()
        torch.ones(FLOATS).exp()

    with mode():
        assert peak_bytes(compute) == 2 * 4 * FLOATS


def test_what_the_graph_keeps_counts_until_it_dies():
    x = torch.ones(FLOATS, requires_grad=True)

    def chain(x: Tensor) -> Tensor:
        for _ in range(4):
            x = x.exp()
        return x

    with torch.no_grad():
        assert peak_bytes(chain, x=x) == 2 * 4 * FLOATS
    assert peak_bytes(chain, x=x) == 4 * 4 * FLOATS
    assert peak_bytes(lambda: [chain(x) is None for _ in range(3)]) == 4 * 4 * FLOATS


def test_gradients_count():
    x = torch.ones(FLOATS, requires_grad=True)
    assert peak_bytes(lambda: (2 * x).backward(torch.ones(FLOATS))) >= 3 * 4 * FLOATS


def test_storage_at_the_address_of_a_dead_input_counts():
    inputs = [torch.ones(FLOATS) for _ in range(50)]

    def compute() -> list[Tensor]:
        made = []
        while inputs:
            inputs.pop().add_(1)
            made.append(torch.ones(FLOATS))
        return made

    assert peak_bytes(compute) == 50 * 4 * FLOATS


def test_a_result_that_makes_room_for_itself_counts():
    out = torch.empty(0)
    assert peak_bytes(lambda: torch.add(torch.ones(FLOATS), 1, out=out)) == 2 * 4 * FLOATS


def test_data_made_in_python_counts():
    assert peak_bytes(lambda: torch.tensor([1.0] * FLOATS)) == 4 * FLOATS


def test_inference_mode_hides_no_part_of_a_composite_operator():
    def attend() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(Q, K, V)

    with torch.no_grad():
        expected = peak_bytes(attend)
    with torch.inference_mode():
        assert peak_bytes(attend) == expected > 4 * 2 * 3 * 16 * 20


def large() -> None:
    torch.ones(LARGE)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_resident_memory_rises_by_what_a_call_takes():
    kept = torch.ones(LARGE)
    peak = peak_memory(large)
    assert peak.method == "resident"
    assert peak.mb == pytest.approx(4 * LARGE / 1e6, rel=0.05)
    assert len(kept) == LARGE


def test_where_the_system_does_not_tell_memory_is_counted_and_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert peak_memory(large) == (4 * LARGE / 1e6, "counted")


def test_the_peak_of_the_process_outlives_a_measurement():
    large()
    before = process_peak_mb()
    peak_memory(lambda: torch.ones(10))
    assert process_peak_mb() >= before


def test_the_peak_of_the_process_is_known_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert 10 < process_peak_mb() < 100_000
