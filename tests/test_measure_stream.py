"""The next token of a stream."""

import pytest

from subquad.documents import validated
from subquad.measure.stream import stream_cost
from subquad.recorded import StreamMeasured


def measured(attention, length, **options):
    return stream_cost(
        attention=attention, options=options, length=length, heads=2, head_dim=4, batch=1, seconds=0
    )


@pytest.mark.parametrize("attention", ["linear", "local", "gated-delta", "softmax", "sparse-transformer"])
def test_a_stream_has_the_time_of_a_step_and_the_size_of_its_state(attention):
    result = validated(StreamMeasured, measured(attention, 24))
    assert result["step"]["ms"]["median"] > 0
    assert result["step"]["reference_ms"]["median"] > 0
    assert result["state"]["mb"] > 0


def test_a_bounded_state_is_of_one_size_and_a_cache_grows():
    short, long = measured("linear", 16), measured("linear", 48)
    assert short["state"]["mb"] == long["state"]["mb"]
    assert long["state"]["reference_mb"] == 3 * short["state"]["reference_mb"] == 2 * 48 * 2 * 4 * 4 / 1e6
    assert measured("softmax", 48)["state"]["mb"] > measured("softmax", 16)["state"]["mb"]


def test_what_cannot_stream_is_refused():
    with pytest.raises(ValueError, match="'nystromformer' has no causal form"):
        measured("nystromformer", 16)
    with pytest.raises(ValueError, match="'poolingformer' cannot stream"):
        measured("poolingformer", 16)
