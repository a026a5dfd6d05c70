"""What users type for a row is read strictly, before anything runs."""

import html
import re
import shlex
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import report_samples as made_up
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from subquad import report
from subquad.experiments.rows import rows
from subquad.experiments.spec import MechanismSpec
from subquad.mechanism import Dims
from subquad.mechanisms.linear import LinearAttention
from subquad.notation import read, swept, written
from subquad.registry import catalog
from subquad.report.sections.configuration import command

DIMS = Dims(heads=2, head_dim=8, max_len=32)
EXPRESSION = "Local(64) | Random(3, seed=1)"


class Told(LinearAttention):
    """A mechanism that takes any text."""

    traits = replace(LinearAttention.traits, name="told")

    def __init__(self, dims: Dims, *, causal: bool, expr: str = "", depth: int = 1) -> None:
        super().__init__(dims, causal=causal)


@pytest.fixture
def told(monkeypatch):
    """Pretend that another package registered `Told`."""
    entry = EntryPoint("told", f"{__name__}:Told", "subquad.mechanisms")
    monkeypatch.setattr("subquad.plugins.entry_points", lambda group: [entry])
    catalog.cache_clear()
    yield
    catalog.cache_clear()


def test_options_are_read_by_their_types():
    (row,) = rows(["performer:features=12,seed=3,orthogonal=false"], DIMS)
    assert row.options == {"features": 12, "seed": 3, "orthogonal": False}
    assert row.label == "performer:features=12,seed=3,orthogonal=False"
    (row,) = rows(["infinity:tau=0.25,sticky=False"], DIMS)
    assert row.options == {"tau": 0.25, "sticky": False}


def test_a_label_names_its_own_row():
    (row,) = rows(["performer:features=12,orthogonal=false"], DIMS)
    assert rows([row.label], DIMS) == (row,)


@pytest.mark.usefixtures("told")
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(expr=st.text(max_size=20) | st.text(alphabet="a (),='\":", max_size=9), depth=st.integers(1, 9))
@example(expr=EXPRESSION, depth=2)
@example(expr="'\"", depth=1)
def test_a_label_names_its_own_row_whatever_text_an_option_holds(expr, depth):
    options = {"expr": expr, "depth": depth}
    (row,) = rows([written("told", options)], DIMS)
    assert row.options == {name: value for name, value in options.items() if value not in ("", 1)}
    assert rows([row.label], DIMS) == (row,)


@pytest.mark.usefixtures("told")
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.text(max_size=20) | st.text(alphabet="a (),='\":", max_size=9), second=st.text(max_size=9))
@example(first=EXPRESSION, second="a,b=c")
def test_rows_with_commas_between_them_are_those_rows(first, second):
    texts = [
        written("told", {"expr": first, "depth": 2}),
        "linear",
        written("told", {"depth": 3, "expr": second}),
    ]
    assert rows([",".join(texts)], DIMS) == rows(texts, DIMS)


def test_an_option_follows_its_own_name():
    texts = ["linear", "performer:features=12,seed=3", f"pattern:expr={EXPRESSION}", "softmax"]
    assert rows([",".join(texts)], DIMS) == rows(texts, DIMS)


def test_a_word_stands_as_it_is_and_other_text_is_quoted():
    assert MechanismSpec(attention="a", options={"b": "two-stage", "c": 1e-6, "d": True}).label == (
        "a:b=two-stage,c=1e-06,d=True"
    )
    assert (
        MechanismSpec(attention="pattern", options={"expr": EXPRESSION}).label
        == f'pattern:expr="{EXPRESSION}"'
    )
    assert MechanismSpec(attention="a", options={"b": "", "c": 'say "x"'}).label == """a:b="",c='say "x"'"""


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_quotes_may_be_left_out_around_parentheses(quote):
    text = f"told:depth=2,expr={quote}{EXPRESSION}{quote},seed=3"
    assert read(text) == ("told", [("depth", "2"), ("expr", EXPRESSION), ("seed", "3")])


def test_the_report_shows_a_label_as_text_and_its_command_asks_for_the_same_row(tmp_path):
    options = {"expr": f'{EXPRESSION} & "<b>"'}
    label = MechanismSpec(attention="linear", options=options).label
    asked = {**made_up.ROWS[1], "options": options, "label": label}
    setting = made_up.comparison([made_up.ROWS[0], asked], seeds=1)
    page = report.write(made_up.write(tmp_path, setting, made_up.sample(setting))).read_text()
    assert html.escape(label) in page
    assert '"<b>"' not in page
    assert label in shlex.split(command(made_up.document([(setting, [])])))


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
        (["performer:seed=1,"], "'performer:seed=1,' is not of the form NAME:option=value"),
        (["told:expr='Local(3)"], "\"told:expr='Local(3)\" does not end the quotes of 'expr'"),
        (['told:expr="a"b,seed=1'], "'told:expr=\"a\"b,seed=1' has 'b,seed=1' behind the quotes of 'expr'"),
        (["told:expr=Local(3,seed=1"], "'expr' has a '(' too many in 'Local(3,seed=1'"),
        (["told:expr=3),seed=(1"], "'expr' has a ')' too many in '3),seed=(1'"),
        (["linear,,softmax"], "unknown mechanism 'linear,'; did you mean 'linear'?"),
        (["performer:features=0"], "'performer': features must be at least 1, not 0"),
        (["linear", "softmax", "linear"], "'linear' is asked for twice"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(texts, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # compared in full below
        rows(texts, DIMS)
    assert str(refusal.value).startswith(message)


def test_all_names_every_mechanism_that_has_the_form_asked_for():
    assert [row.attention for row in rows(["all"], DIMS)] == list(catalog())
    assert [row.label for row in rows(["all", "performer:features=8"], DIMS)][-1] == "performer:features=8"
    causal = [name for name, cls in catalog().items() if cls.traits.causal]
    assert [row.attention for row in rows(["all"], DIMS, causal=True)] == causal


def test_a_sweep_is_a_row_for_each_value_and_of_several_options_for_each_pair():
    assert swept("performer:features=8|16") == ["performer:features=8", "performer:features=16"]
    both = swept("performer:features=8|16,seed=3,kind=softmax|relu")
    assert both == [
        f"performer:features={features},seed=3,kind={kind}"
        for features in (8, 16)
        for kind in ("softmax", "relu")
    ]
    made = rows(["softmax,performer:features=8|16,linear"], DIMS)
    assert [row.label for row in made] == [
        "softmax",
        "performer:features=8",
        "performer:features=16",
        "linear",
    ]


@pytest.mark.parametrize(
    "text",
    [
        'pattern:expr="Local(4) | Random(3, seed=1)"',
        "pattern:expr=Local(4) | Random(3)",
        "pattern:expr=Local(4)|Random(3)",
        "told:expr='8|16'",
        "performer:features=8",
        "softmax",
    ],
)
def test_what_is_quoted_or_no_word_is_no_sweep(text):
    assert swept(text) == [text]


@given(st.lists(st.integers(1, 512), min_size=2, max_size=4, unique=True), st.text(alphabet="a|'\"(), 1"))
def test_a_sweep_leaves_other_options_as_they_are(values, beside):
    sweep = "|".join(map(str, values))
    texts = swept(f"{written('told', {'expr': beside})},depth={sweep}")
    assert [read(text) for text in texts] == [
        ("told", [("expr", beside), ("depth", str(value))]) for value in values
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("performer:features=8|", "takes a whole number, not '8|'"),
        ("performer:features=8|many", "takes a whole number, not 'many'"),
        ("performer:features=8|8", "'performer:features=8' is asked for twice"),
        ("performer:features=8|16,features=32", "gives 'features' twice"),
    ],
)
def test_a_sweep_is_read_as_strictly_as_its_rows(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rows([text], DIMS)
