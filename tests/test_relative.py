"""Relative attention in small blocks gives what the definitions give, whatever shares a block."""

import pytest
from torch.testing import assert_close

from subquad.mechanisms.compressive import CompressiveAttention
from subquad.mechanisms.infinity import InfinityAttention
from subquad.mechanisms.transformer_xl import TransformerXL
from subquad.ops.backends import using
from subquad.ops.relative_attention import reference
from subquad.ops.shared import parallel
from subquad.testing.mechanism.cases import make, random_inputs
from subquad.testing.mechanism.causality import check_stream_equals_sequence
from subquad.testing.mechanism.meaning import check_matches_definition

SAME_LENGTH = {"segment": 5, "memory": 7, "same_length": True}


@pytest.fixture(params=[(1, 1), (3, 1), (2, 40)], ids=str)
def small_blocks(request, monkeypatch):
    for name, size in zip(("BLOCK_QUERIES", "MAX_SCORES"), request.param, strict=True):
        monkeypatch.setattr(reference, name, size)
    monkeypatch.setattr(parallel, "MAX_NUMBERS", request.param[1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("check", [check_matches_definition, check_stream_equals_sequence])
@pytest.mark.parametrize("cls", [TransformerXL, CompressiveAttention, InfinityAttention])
def test_small_blocks_keep_the_contract(cls, check):
    check(cls)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", ["parallel", "reference"])
def test_a_window_of_one_width_keeps_it_in_small_blocks(backend):
    mechanism = make(TransformerXL, causal=True, **SAME_LENGTH)
    inputs = random_inputs(mechanism)
    with using(backend):
        assert_close(mechanism(**inputs), mechanism.definition(**inputs))
