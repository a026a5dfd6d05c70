"""Names lead to mechanisms, and mistakes to the right name."""

import math
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from subquad import Dims, build, catalog, options
from subquad.mechanisms.linear import LinearAttention
from subquad.plugins import collect, look_up

DIMS = Dims(heads=2, head_dim=4)


@pytest.fixture
def plugins(monkeypatch):
    """Pretend that other packages registered these classes."""

    def install(**targets):
        entries = [EntryPoint(name, value, "subquad.mechanisms") for name, value in targets.items()]
        monkeypatch.setattr("subquad.plugins.entry_points", lambda group: entries)
        catalog.cache_clear()

    yield install
    catalog.cache_clear()


def test_a_plugin_is_found_by_its_own_name(plugins, monkeypatch):
    class Mine(LinearAttention):
        traits = type(LinearAttention.traits)(name="mine", paper="-", family="other", causal="strict")

    monkeypatch.setattr(sys.modules[__name__], "Mine", Mine, raising=False)
    plugins(mine=f"{__name__}:Mine")
    assert catalog()["mine"] is Mine


def test_a_broken_plugin_is_reported_and_the_rest_still_work(plugins):
    plugins(broken="no_such_package:Thing")
    with pytest.warns(UserWarning, match="'broken' from 'no_such_package:Thing' not loaded"):
        assert "linear" in catalog()


def test_a_plugin_that_is_no_mechanism_is_reported(plugins):
    plugins(path="pathlib:Path")
    with pytest.warns(UserWarning, match="'path' from 'pathlib:Path' is not a Mechanism"):
        assert "path" not in catalog()


def test_two_mechanisms_may_not_share_a_name(plugins, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Copy", type("Copy", (LinearAttention,), {}), raising=False)
    plugins(copy=f"{__name__}:Copy")
    with pytest.raises(ValueError, match="two mechanisms are named 'linear'"):
        catalog()


def test_tasks_and_executors_are_found_as_mechanisms_are(monkeypatch):
    entries = [EntryPoint("e", "math:e", "subquad.tasks"), EntryPoint("sin", "math:sin", "subquad.tasks")]
    monkeypatch.setattr(
        "subquad.plugins.entry_points", lambda group: entries if group == entries[0].group else []
    )
    with pytest.warns(UserWarning, match="'sin' from 'math:sin' is not a Task: ignored"):
        known = collect("task", [1.0], accepts=lambda thing: isinstance(thing, float), name="{:.1f}".format)
    assert look_up("task", "2.7", known) == math.e
    with pytest.raises(ValueError, match=re.escape("unknown task '2.8'; did you mean '2.7'?")):
        look_up("task", "2.8", known)
    assert not collect("executor", [], accepts=callable, name=str)


@pytest.mark.parametrize(
    ("name", "causal", "chosen", "message"),
    [
        ("liner", True, {}, "unknown mechanism 'liner'; did you mean 'linear'?"),
        ("zzz", True, {}, "unknown mechanism 'zzz'; known: aoglu-3, bigbird, "),
        ("performer", True, {"feature": 8}, "'performer' has no option 'feature'; did you mean 'features'?"),
        ("linear", True, {"chunk": 8}, "'linear' has no option 'chunk'; it takes none"),
        ("infinity", False, {}, "'infinity' has no bidirectional form; build it with causal=True"),
        ("performer", True, {"features": 0}, "features must be at least 1, not 0"),
    ],
)
def test_mistakes_name_the_remedy(name, causal, chosen, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(name, DIMS, causal=causal, **chosen)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=re.escape("Dims.heads must be at least 1, not 0")):
        Dims(heads=0, head_dim=4)


def test_options_are_listed_with_their_defaults():
    assert options(catalog()["infinity"])["segment"] == 128
    assert options(catalog()["oglu-1"]) == {"activation": "softplus"}


def test_importing_the_package_loads_no_torch():
    code = "import sys; import subquad, subquad.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
