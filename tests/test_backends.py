"""Which backend serves a call: the first that does not refuse, by its own reasons, and back as forward."""

import importlib
import sys
import warnings

import pytest
import torch

from subquad.ops.backends import Backends, Composite, Lost, Refused, Unavailable, backend, using, warn_once


class Adds:
    """Adds a number to a call that is not above a bound; to one exactly there it gives nothing."""

    def __init__(self, number, *, bound=torch.inf):
        self.number, self.bound = number, bound

    def refuses(self, call):
        return f"{call} is above {self.bound}" if call > self.bound else None

    def forward(self, call):
        return None if call == self.bound else call + self.number

    def backward(self, grad, call, result):
        return grad


class Steps(Adds):
    def step(self, call, state):
        return state


def operator(**named):
    backends = Backends("package.operator", *named)
    backends.loaded = list(named.items())
    return backends


def test_the_first_that_does_not_refuse_serves_and_is_the_one_for_the_way_back():
    both = operator(small=Adds(10, bound=5), reference=Adds(100))
    assert both.run("forward", 1) == (0, 11)
    index, found = both.run("forward", 7)
    assert found == 107
    assert both[torch.tensor(index)] is both.loaded[1][1]


def test_where_only_the_numbers_tell_the_next_one_does_it():
    assert operator(small=Adds(10, bound=5), reference=Adds(100)).run("forward", 5) == (1, 105)


def test_what_a_backend_has_not_the_next_one_does():
    assert operator(small=Adds(10), reference=Steps(100)).run("step", 5, "state") == (1, "state")


def test_a_choice_is_explained_with_the_reasons_of_those_before():
    both = operator(small=Adds(10, bound=5), reference=Adds(100))
    told = backend(lambda: [both.run("forward", call) for call in (7, 7, 1)])
    assert str(told) == "operator: reference\n  small refuses: 7 is above 5\noperator: small"
    assert len(told) == 2


def test_within_using_no_other_backend_serves():
    both = operator(small=Adds(10, bound=5), reference=Adds(100))
    with using("reference"):
        assert both.run("forward", 1) == (1, 101)
        with using("small"), pytest.raises(ValueError, match="small refuses: 7 is above 5"):
            both.run("forward", 7)
    assert both.run("forward", 1) == (0, 11)
    with using("smal"), pytest.raises(ValueError, match="using\\('smal'\\) asks for another"):
        both.run("forward", 1)


class MadeOf(Adds):
    """Whose numbers an operator adds."""

    def __init__(self, inner):
        self.inner = inner

    def refuses(self, call):
        return None

    def forward(self, call):
        return self.inner.run("forward", call)[1]


@pytest.fixture
def composite():
    inner = operator(fast=Adds(10, bound=5), reference=Adds(100))
    whole = Composite("package.composite", "whole", "parts")
    whole.loaded = [("whole", Adds(1000, bound=3)), ("parts", MadeOf(inner))]
    return whole


def test_using_may_name_a_backend_of_the_operators_that_the_last_one_is_made_of(composite):
    assert [composite.serve(call) for call in (1, 4, 7)] == [1001, 14, 107]
    with using("reference"):
        assert composite.serve(1) == 101
    with using("whole"), pytest.raises(Refused, match="whole refuses: 4 is above 3"):
        composite.serve(4)


def test_the_choice_of_the_whole_is_told_before_those_of_its_parts(composite):
    assert str(backend(composite.serve, 4)) == (
        "composite: parts\n  whole refuses: 4 is above 3\noperator: fast"
    )


def test_a_backend_that_cannot_be_built_is_left_out_with_one_warning():
    warn_once.cache_clear()

    def unbuilt(call):
        raise Unavailable("no compiler: install one")

    both = operator(compiled=Adds(10), reference=Adds(100))
    both.loaded[0][1].forward = unbuilt
    with pytest.warns(RuntimeWarning, match="slower without the backend 'compiled': no compiler") as told:
        assert [both.run("forward", 1), both.run("forward", 1)] == [(1, 101), (1, 101)]
    assert len(told) == 1
    assert isinstance(both.loaded[0][1], Lost)


def test_any_other_error_of_a_backend_is_an_error():
    both = operator(compiled=Adds(10), reference=Adds(100))
    with pytest.raises(TypeError):
        both.run("forward", "text")


ELSEWHERE = """
def refuses(call):
    return None

def forward(call):
    return "elsewhere"

def backward(grad, call, result):
    return grad
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An installed package with a file, which its entry points name as backends."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    folder = tmp_path / "elsewhere-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: elsewhere\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda text: (folder / "entry_points.txt").write_text(f"[subquad.backends]\n{text}\n")
    sys.modules.pop("elsewhere", None)


def test_a_file_outside_the_package_adds_a_backend_to_an_operator(elsewhere):
    elsewhere("operator.mine = elsewhere\nother.mine = nowhere")
    assert Backends("package.operator").run("forward", 1) == (0, "elsewhere")


def test_a_backend_above_operators_needs_no_backward(elsewhere):
    elsewhere("composite.mine = elsewhere")
    vars(importlib.import_module("elsewhere")).pop("backward")
    assert Composite("package.composite").serve(1) == "elsewhere"


def test_a_plugin_that_fails_to_load_warns_once_and_the_rest_works(elsewhere):
    elsewhere("operator.lost = nowhere\noperator.mine = elsewhere\noperator.no = elsewhere:forward")
    backends = Backends("package.operator")
    with pytest.warns(RuntimeWarning, match="without the backend") as told:
        assert backends.run("forward", 1) == (1, "elsewhere")
    assert [str(x.message).split(": ")[1] for x in told] == [
        "'nowhere' cannot be loaded",
        "'elsewhere:forward' is no backend, which has refuses, forward, backward",
    ]
    with warnings.catch_warnings(), using("lost"), pytest.raises(ValueError, match="cannot be loaded"):
        backends.run("forward", 1)
