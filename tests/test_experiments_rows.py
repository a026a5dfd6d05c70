"""What users type for a row is read strictly, before anything runs."""

import pytest

from subquad.experiments.rows import rows
from subquad.mechanism import Dims

DIMS = Dims(heads=2, head_dim=8, max_len=32)


def test_options_are_read_by_their_types():
    (row,) = rows(["performer:features=12,seed=3,orthogonal=false"], DIMS)
    assert row.options == {"features": 12, "seed": 3, "orthogonal": False}
    assert row.label == "performer:features=12,seed=3,orthogonal=False"
    (row,) = rows(["infinity:tau=0.25,sticky=False"], DIMS)
    assert row.options == {"tau": 0.25, "sticky": False}


def test_a_label_names_its_own_row():
    (row,) = rows(["performer:features=12,orthogonal=false"], DIMS)
    assert rows([row.label], DIMS) == (row,)


def test_an_option_at_its_default_makes_no_other_row():
    assert rows(["performer:seed=0"], DIMS) == rows(["performer"], DIMS)


def test_a_mechanism_without_a_bidirectional_form_says_that_it_is_causal():
    causal, bidirectional = rows(["infinity", "linear"], DIMS)
    assert (causal.causal, bidirectional.causal) == (True, False)
    assert rows(["linear"], DIMS, causal=True)[0].causal


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no attention mechanism is named"),
        (["liner"], "unknown mechanism 'liner'; did you mean 'linear'?"),
        (["performer:feature=3"], "'performer' has no option 'feature'; did you mean 'features'?"),
        (["linear:features=3"], "'linear' has no option 'features'; it takes none"),
        (["performer:features=many"], "option 'features' of 'performer' takes a whole number, not 'many'"),
        (["performer:features=2.5"], "option 'features' of 'performer' takes a whole number, not '2.5'"),
        (["performer:orthogonal=1"], "option 'orthogonal' of 'performer' takes true or false, not '1'"),
        (["infinity:tau=nan"], "option 'tau' of 'infinity' takes a finite number, not 'nan'"),
        (["performer:features"], "'performer:features' is not of the form NAME:option=value"),
        (["performer:"], "'performer:' is not of the form NAME:option=value"),
        (["performer:seed=1,seed=2"], "'performer:seed=1,seed=2' gives 'seed' twice"),
        (["performer:features=0"], "features must be at least 1, not 0"),
        (["linear", "softmax", "linear"], "'linear' is asked for twice"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(texts, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # compared in full below
        rows(texts, DIMS)
    assert str(refusal.value).startswith(message)
