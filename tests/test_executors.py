"""Executors are found by name, those of other packages too, and find what a process of ours would."""

import sys
from dataclasses import replace

import pytest
from own_sample import write

from subquad import executors
from subquad.config import ModelConfig
from subquad.executors import Local, outcome
from subquad.experiments.comparison import plan, run
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.grid import Observer
from subquad.notation import written
from subquad.records import Store

INLINE = """
from subquad.executors import Executor, run_here

class Inline(Executor):
    name = "inline"

    def run(self, spec, store, tell):
        return {**run_here(spec, store, tell), "place": "inline"}

    def stop(self):
        pass
"""
COUNTING = """
from dataclasses import asdict, dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Counting:
    kind: ClassVar = "counting"
    version: ClassVar = 1
    timed: ClassVar = False
    key: str
    label: str = "count"
    upto: float = 3
    threads: int = 1

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, fields):
        return cls(**fields)

    def run(self, store, tell):
        tell({"event": "note", "text": f"counting up to {self.upto}"})
        return {"result": {"sum": sum(range(self.upto))}}

    def check(self, record):
        if record["status"] == "ok" and record["result"]["sum"] == 0:
            raise ValueError("sum: is zero")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes packages that are installed as others', with nothing of ours changed."""

    def install(name, source, **entries):
        folder = tmp_path / "installed"
        information = folder / f"{name}-1.dist-info"
        information.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        lines = [f"{entry} = {value}" for entry, value in entries.items()]
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (information / "entry_points.txt").write_text("\n".join(["[subquad.executors]", *lines]))
        monkeypatch.syspath_prepend(folder)
        executors.catalog.cache_clear()

    yield install
    executors.catalog.cache_clear()
    for name in ("someones_executor", "someones_spec"):
        sys.modules.pop(name, None)


@pytest.fixture
def config(tmp_path):
    return Comparison(
        tasks=(written("custom", {"schema": str(write(tmp_path / "own"))}),),
        attention=("linear",),
        model=ModelConfig(dim=8, depth=1, heads=2),
        training=TrainingConfig(steps=4),
        device="cpu",
        bench=False,
    )


def compare(config, folder):
    """The records of a comparison, by kind and what they are of."""
    records = run(plan(config), config, Store(folder), observer=Observer())
    assert [record["reason"] for record in records] == ["" for _ in records]
    return records


def test_an_executor_of_another_package_runs_a_comparison_and_finds_what_ours_finds(
    package, config, tmp_path
):
    package("someones_executor", INLINE, inline="someones_executor:Inline")
    theirs = compare(replace(config, executor="inline"), tmp_path / "theirs")
    ours = compare(config, tmp_path / "ours")
    assert {record["place"] for record in theirs} == {"inline"}
    assert [record["result"] for record in theirs] == [record["result"] for record in ours]


def test_what_other_packages_bring_is_named_in_the_comparison_and_its_records(package, config):
    package("someones_executor", INLINE, inline="someones_executor:Inline")
    (spec, *_) = (planned := plan(config)).fits
    ours = {"kind": "executor", "name": "inline", "package": "someones_executor", "version": "1"}
    assert ours in planned.document["plugins"]
    assert outcome.surroundings(spec)["versions"]["someones_executor"] == "1"


def test_an_unknown_executor_is_refused_before_anything_is_read(config):
    with pytest.raises(ValueError, match="unknown executor 'locl'; did you mean 'local'"):
        plan(replace(config, tasks=("custom:schema=none.toml",), executor="locl"))


def test_what_an_executor_refuses_is_not_the_latest_comparison(config, tmp_path, monkeypatch):
    def refuse(self, **options):
        raise ValueError("there is no such cluster")

    monkeypatch.setattr(executors.Local, "__init__", refuse)
    with pytest.raises(ValueError, match="no such cluster"):
        compare(config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_where_a_comparison_ran_does_not_change_what_it_is(package, config):
    package("someones_executor", INLINE, inline="someones_executor:Inline")
    here, there = plan(config), plan(replace(config, executor="inline"))
    assert here.document == there.document


def test_what_is_no_executor_is_reported_and_the_rest_still_work(package):
    package("someones_executor", INLINE, inline="someones_executor:run_here")
    with pytest.warns(UserWarning, match="'inline' from 'someones_executor:run_here' is not an? Executor"):
        assert list(executors.catalog()) == ["local", "ray"]


def test_a_process_finds_the_modules_that_its_parent_finds_and_runs_specs_of_any_kind(package, tmp_path):
    package("someones_spec", COUNTING)
    from someones_spec import Counting  # pyright: ignore[reportMissingImports]

    told = []
    record = Local(timeout=60).run(Counting("a"), Store(tmp_path), told.append)
    assert record["reason"] == ""
    assert record["result"] == {"sum": 3}
    assert told == [{"event": "note", "text": "counting up to 3"}]


@pytest.mark.parametrize(
    ("upto", "reason"),
    [
        (0.5, "'float' object cannot be interpreted as an integer"),
        (0, "its outcome is no result: sum: is zero"),
    ],
)
def test_a_run_that_raises_or_finds_no_result_leaves_a_record_that_says_so(package, tmp_path, upto, reason):
    package("someones_spec", COUNTING)
    from someones_spec import Counting  # pyright: ignore[reportMissingImports]

    record = outcome.run_here(Counting("a", upto=upto), Store(tmp_path), print)
    assert (record["status"], record["reason"], record["result"]) == ("failed", reason, {})


def test_a_number_that_json_does_not_have_is_no_result(package, tmp_path, monkeypatch):
    package("someones_spec", COUNTING)
    from someones_spec import Counting  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(Counting, "run", lambda self, store, tell: {"result": {"sum": float("nan")}})
    record = outcome.run_here(Counting("a"), Store(tmp_path), print)
    assert (record["status"], record["result"]) == ("failed", {})
    assert "not JSON compliant" in record["reason"]
