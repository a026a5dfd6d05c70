"""What a mechanism is given is held against what it was built for, and the answer says what to do."""

import inspect
import re

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims, build, catalog
from subquad.mechanisms.linear import LinearAttention

DIMS = Dims(heads=4, head_dim=8)


def tokens(*shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


q, k, v = tokens(2, 4, 40, 8)
WANTED = "it takes (batch, heads, tokens, width), here"
MISFITS = [
    (tokens(2, 40, 4, 8), f"got q of shape (2, 40, 4, 8): {WANTED} (batch, 4, tokens, 8); heads and tokens"),
    (tokens(2, 40, 4, 8), "heads and tokens look swapped: give q.transpose(1, 2)"),
    (tokens(2, 3, 40, 8), f"got q of shape (2, 3, 40, 8): {WANTED} (batch, 4, tokens, 8)"),
    (tokens(2, 4, 40, 16), f"got q of shape (2, 4, 40, 16): {WANTED} (batch, 4, tokens, 8)"),
    ([q, k, v[..., :5]], f"got v of shape (2, 4, 40, 5): {WANTED} (2, 4, 40, 8)"),
    (tokens(4, 40, 8), "got q of shape (4, 40, 8): inputs are tensors (batch, heads, tokens, width)"),
    ([q, k, v.tolist()], "got v of type list: inputs are tensors (batch, heads, tokens, width)"),
    ([q, q, q[:, :, :3]], f"got v of shape (2, 4, 3, 8): {WANTED} (2, 4, 40, 8)"),
    ([q, k, v.double()], "got v in torch.float64 on cpu and q in torch.float32 on cpu: give all inputs in"),
    (
        [q, k, v.to("meta")],
        "got v in torch.float32 on meta and q in torch.float32 on cpu: give all inputs in",
    ),
    ([x.long() for x in (q, k, v)], "got inputs in torch.int64: convert them to a floating dtype"),
    ([q, k], "takes q, k, v; not 2 inputs by position"),
    ([q, k, v, v], "takes q, k, v; not 4 inputs by position"),
]


@pytest.mark.parametrize(("inputs", "message"), MISFITS)
@pytest.mark.parametrize("form", ["forward", "definition", "step"])
def test_what_does_not_fit_is_named(form, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(build("linear", DIMS, causal=True), form)(*inputs)


def test_names_that_nobody_takes_are_refused():
    with pytest.raises(ValueError, match="takes q, k, v; not 1 inputs by position and key, value by name"):
        build("linear", DIMS, causal=True)(q, key=k, value=v)


def test_a_mask_must_lie_where_the_inputs_do():
    valid = torch.ones(2, 40, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match=r"valid must be boolean of shape \(2, 40\) \(batch, keys\) on cpu"):
        build("linear", DIMS, causal=True)(q, k, v, valid=valid)


def test_inputs_that_fit_may_be_views_of_any_layout():
    mechanism = build("linear", DIMS, causal=True)
    laid_out_otherwise = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert_close(mechanism(*laid_out_otherwise), mechanism(q, k, v))


class Gated(LinearAttention):
    """Of another package: takes a gate, and hands the rest on to its base."""

    def projections(self):
        return {**super().projections(), "gate": 8}

    def forward(self, q, k, v, gate, *, valid=None):
        return gate * super().forward(q, k, v, valid=valid)

    def definition(self, q, k, v, gate, *, valid=None):
        return gate * super().definition(q, k, v, valid=valid)


def test_a_subclass_with_inputs_of_its_own_may_call_the_forms_of_its_base():
    mechanism, gate = Gated(DIMS, causal=False), torch.randn(2, 4, 40, 8)
    assert_close(mechanism(q, k, v, gate), mechanism.definition(q, k, v, gate))
    assert_close(mechanism(q, k, v, gate), gate * build("linear", DIMS, causal=False)(q, k, v))
    with pytest.raises(ValueError, match=re.escape("got gate of shape (2, 4, 39, 8)")):
        mechanism(q, k, v, gate[:, :, 1:])


@pytest.mark.parametrize("name", ["linear", "gated-delta"])
def test_the_signature_is_that_of_the_form(name):
    mechanism = build(name, DIMS, causal=True)
    wanted = [*mechanism.projections(), "valid"]
    assert list(inspect.signature(mechanism.forward).parameters) == wanted
    assert list(inspect.signature(mechanism.step).parameters) == [*wanted, "state", "in_place"]


@pytest.mark.parametrize("name", ["softmax", "linear", "transformer-xl"])
def test_a_state_of_another_kind_is_refused(name):
    mechanism = build(name, DIMS, causal=True)
    _, state = build("delta", DIMS, causal=True).step(q, k, v, torch.zeros(2, 4, 40, 1))
    with pytest.raises(ValueError, match=r"got a state with .*recurrent\.RecurrentState.* where its own has"):
        mechanism.step(q, k, v, state=state)


def test_a_state_that_grew_fits():
    mechanism = build("softmax", DIMS, causal=True)
    _, state = mechanism.step(q, k, v)
    out, _ = mechanism.step(q, k, v, state=state)
    assert_close(out, mechanism(*(torch.cat([x, x], 2) for x in (q, k, v)))[:, :, 40:])


def test_a_state_whose_sums_are_wider_than_the_inputs_goes_on_with_wider_inputs():
    mechanism = build("linear", DIMS, causal=True)
    half, single = ([x.to(dtype) for x in (q, k, v)] for dtype in (torch.bfloat16, torch.float32))
    _, state = mechanism.step(*half)
    mechanism.step(*single, state=state)


def test_no_two_forms_share_their_code_by_which_the_compiler_counts_graphs():
    forms = {
        form
        for cls in catalog().values()
        for form in (cls.forward, cls.definition, cls.step)
        if hasattr(form, "__wrapped__")
    }
    assert len({form.__code__ for form in forms}) == len(forms)


@pytest.mark.parametrize("name", catalog())
def test_every_form_of_every_mechanism_is_guarded(name):
    cls = catalog()[name]
    for form in ("forward", "definition", "step"):
        if form != "step" or cls.traits.state is not None:
            assert hasattr(getattr(cls, form), "__wrapped__")
