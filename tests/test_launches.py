"""How many operations a device is asked for: as many for any length, or there is a reason."""

import pytest
import torch

from subquad import Dims, build, catalog
from subquad.measure.launches import count_launches
from subquad.ops.shared import parallel

GROWING = {  # form: why
    ("delta", False): "maps of chunks are multiplied by halves, in as many rounds as its logarithm",
    ("delta", True): "likewise",
    ("gated-delta", False): "likewise",
    ("gated-delta", True): "likewise",
    ("kda", False): "likewise",
    ("kda", True): "likewise",
    ("forgetting", True): "blocks of queries, since a matrix of all weights would not fit",
    ("infinity", True): "a sticky write depends on where the one before was read",
    ("infinity-gpt2", True): "likewise",
    ("reformer", False): "more buckets are a product of more hashes",
    ("reformer", True): "likewise",
}
FORMS = [
    (name, causal)
    for name, cls in catalog().items()
    for causal in (False, True)
    if (cls.traits.causal if causal else cls.traits.bidirectional)
]


def launches(name, causal, length, *, learns, **options):
    """Those of a mechanism on a device without numbers, for which nobody can wait."""
    dims = Dims(heads=4, head_dim=32, max_len=length)
    mechanism = build(name, dims, causal=causal, **options).to("meta")
    x = [
        torch.empty(1, 4, length, width, device="meta", requires_grad=learns)
        for width in mechanism.projections().values()
    ]
    valid = torch.empty(1, length, dtype=torch.bool, device="meta")

    def run():
        out = mechanism(*x, valid=valid)
        if learns:
            torch.autograd.grad(out.sum(), x)

    with torch.set_grad_enabled(learns):
        return count_launches(run)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("name", "causal"), [form for form in FORMS if form not in GROWING])
def test_launches_do_not_grow_with_the_length(name, causal, learns, monkeypatch):
    monkeypatch.setattr(parallel, "MAX_NUMBERS", 2**40)  # no turns that bound memory
    few, many = (launches(name, causal, n, learns=learns) for n in (4096, 16384))
    assert many == few


@pytest.mark.parametrize(("name", "causal"), GROWING)
def test_a_form_that_is_said_to_grow_does(name, causal):
    few, many = (launches(name, causal, n, learns=False) for n in (4096, 16384))
    assert few < many < 4 * few


SMALL = {"segment": 32, "basis": 16, "samples": 16}


@pytest.mark.parametrize(("name", "most"), [("infinity", 41), ("infinity-gpt2", 42)])
def test_a_sticky_write_asks_for_what_it_needs_and_its_gradient_for_five_operations(name, most):
    for learns, each in ((False, most), (True, most + 5)):
        few, many = (launches(name, True, 32 * n, learns=learns, **SMALL) for n in (8, 16))
        assert many - few <= each * 8


@pytest.mark.parametrize("name", ["infinity", "infinity-gpt2"])
def test_writes_at_even_points_go_side_by_side(name):
    few, many = (launches(name, True, 32 * n, learns=True, sticky=False, **SMALL) for n in (16, 64))
    assert many - few <= 2 * 24  # by two rounds, of twice as many segments each
