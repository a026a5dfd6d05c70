"""A run of the suite for a card: when rows are wrong, crash, hang or find no time; and what it says."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from subquad.ops.triton import availability

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks` is no part of the package

from benchmarks import __main__ as command
from benchmarks.cuda import document, plan, suite, verdicts
from benchmarks.cuda.plan import REHEARSAL, Check, Race
from benchmarks.cuda.targets import FLA, FUSED, WORKS
from benchmarks.cuda.worker import Part

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
RIGHT = {"errors": {"outputs": 1e-3}, "wrong": [], "varies": [], "unstreamed": ""}
WRONG = {"errors": {"outputs": 0.4}, "wrong": ["outputs is off by 4.0e-01"], "varies": [], "unstreamed": ""}
REFUSED = {"refused": "there is no card"}


def timed(missing=None, **medians):
    medians = {FUSED if name == "fused" else FLA if name == "fla" else name: x for name, x in medians.items()}
    ms = {name: {"median": x, "low": x, "high": x, "repeats": 5} for name, x in medians.items()}
    return {"ms": ms, "mb": dict.fromkeys(ms, 1.0), "missing": missing or {}}


def row(made, result):
    return {made.name: {**plan.to_json(made), **result}}


def race(result):
    return row(Race(work="linear-causal", passes="forward", length=4096), result)


def check(backend, result):
    return row(Check(work="linear-causal", backend=backend, dtype="bfloat16", width=64), result)


def results(*rows, **settings):
    identity = {
        "quick": True,
        "rehearsal": False,
        "card": "NVIDIA H200",
        "capability": [9, 0],
        "driver": "570",
    }
    identity |= {"versions": {"torch": "2.11.0"}, "commit": "abc", "only": []}
    found = {"rows": {}, "seconds": 400, "finished": True}
    for one in rows:
        found["rows"] |= one
    return identity | found | settings


def run_here(part, *, timeout, hear):
    """In place of a process of its own."""
    assert timeout > 0
    part.run(hear)
    return ""


class Plan:
    """What rows are to give, and which were measured, in their order; `run` is in this process."""

    def __init__(self):
        self.measured, self.without, self.give = [], {}, {}

    def run(self, **options):
        known = {"quick": True, "scale": REHEARSAL, "say": lambda _: None, "save": lambda _: None}
        return suite.run(options.pop("only", ["linear-causal"]), **known | options)

    def measure(self, part, row):
        self.measured.append(row.name)
        self.without[row.name] = dict(part.without.get(row.work, {}))
        found = self.give.get(row.name, RIGHT if isinstance(row, Check) else timed(parallel=1.0, fused=2.0))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def planned(monkeypatch):
    made = Plan()
    monkeypatch.setattr(suite.process, "run", run_here)
    monkeypatch.setattr(suite, "commit", lambda: "abc")
    monkeypatch.setattr(Part, "measure", lambda self, row: made.measure(self, row))
    return made


TRITON, PARALLEL = (f"linear-causal right {name} bfloat16 64" for name in ("triton", "parallel"))
FIRST, *OTHERS = (one.name for one in plan.races(plan.find("linear-causal"), quick=True))


def test_nothing_is_timed_before_all_numbers_are_known(planned):
    planned.run(only=["linear-causal", "decoding-linear", "retention"])
    kinds = [" right " in name for name in planned.measured]
    assert kinds == sorted(kinds, reverse=True)
    assert len(set(planned.measured)) == len(planned.measured)


def test_a_backend_that_is_wrong_is_not_timed_and_others_are(planned):
    planned.give[TRITON] = WRONG
    found = planned.run()
    assert planned.without[FIRST] == {"triton": "wrong: outputs is off by 4.0e-01"}
    assert "ms" in found["rows"][FIRST]
    assert verdicts.failed(found) == [f"{TRITON}: outputs is off by 4.0e-01"]


def test_where_all_are_wrong_nothing_is_timed(planned):
    planned.give |= {TRITON: REFUSED, PARALLEL: WRONG}
    found = planned.run()
    assert planned.measured == [TRITON, PARALLEL]
    assert "parallel: wrong" in found["rows"][FIRST]["unmeasured"]


def test_a_row_that_raises_is_noted_and_fails_the_run(planned):
    planned.give[FIRST] = RuntimeError("out of luck")
    found = planned.run()
    assert found["rows"][FIRST]["failed"] == "RuntimeError: out of luck"
    assert all("ms" in found["rows"][name] for name in OTHERS)
    assert verdicts.failed(found) == [f"{FIRST}: RuntimeError: out of luck"]


def test_a_backend_whose_check_did_not_end_is_not_timed(planned):
    planned.give[TRITON] = RuntimeError("out of luck")
    give = timed({"triton": "not checked: RuntimeError: out of luck"}, parallel=1.0, fused=2.0)
    planned.give |= dict.fromkeys((FIRST, *OTHERS), give)
    first = planned.run()
    assert planned.without[FIRST] == give["missing"]
    planned.measured.clear()
    planned.give.clear()
    planned.run(before=first)
    assert planned.measured == [TRITON, FIRST, *OTHERS]


def test_rows_without_time_are_noted_and_fail_nothing(planned):
    found = planned.run(budget=0.0)
    assert planned.measured == []
    assert found["rows"][TRITON]["unmeasured"] == suite.OUT_OF_TIME
    assert "not checked" in found["rows"][FIRST]["unmeasured"]
    assert verdicts.failed(found) == []


def test_every_row_is_saved_as_soon_as_it_is_known(planned):
    saved = []
    planned.run(save=lambda results: saved.append(len(results["rows"])))
    assert saved == list(range(1, 3 + len(OTHERS) + 1))


def test_a_run_goes_on_where_the_last_one_stopped(planned, monkeypatch):
    planned.give[FIRST] = RuntimeError("out of luck")
    first = planned.run()
    planned.measured.clear()
    planned.give.clear()
    second = planned.run(before=first)
    assert planned.measured == [FIRST]
    assert "ms" in second["rows"][FIRST]
    planned.measured.clear()
    planned.run(before=second | {"card": "another"})
    assert len(planned.measured) == 3 + len(OTHERS)
    planned.measured.clear()
    monkeypatch.setattr(suite, "commit", lambda: "abc-dirty")
    planned.run(before=second | {"commit": "abc-dirty"})
    assert len(planned.measured) == 3 + len(OTHERS)


class Unlucky(Part):
    """Of which the first row kills its process, the second hangs, and the others end."""

    def measure(self, row):
        if row.name == FIRST:
            os.kill(os.getpid(), signal.SIGKILL)
        if row.name == OTHERS[0]:
            Event().wait()
        return RIGHT if isinstance(row, Check) else timed(parallel=1.0, fused=2.0)


@pytest.mark.slow
def test_a_crash_and_a_row_that_hangs_cost_themselves(monkeypatch):
    monkeypatch.setattr(suite, "commit", lambda: "abc")
    scale = replace(REHEARSAL, row_s=0.5)
    found = suite.run(
        ["linear-causal"], quick=True, scale=scale, say=print, save=lambda _: None, part=Unlucky
    )
    assert "signal 9" in found["rows"][FIRST]["failed"]
    assert found["rows"][OTHERS[0]]["failed"] == "not done after 0.5 seconds"
    assert all("ms" in found["rows"][name] for name in OTHERS[1:])


@pytest.mark.slow
def test_a_whole_rehearsal_runs_from_the_command(tmp_path, capsys):
    saved = tmp_path / "saved.json"
    arguments = [
        "--device",
        "cuda",
        "--rehearse",
        "--quick",
        "--only",
        "decoding-linear",
        "--json",
        str(saved),
    ]
    assert command.main(arguments) == 0
    rows = json.loads(saved.read_text())["rows"]
    assert rows[PARALLEL]["wrong"] == []
    assert {"parallel", FUSED} == rows["decoding-linear step 32768"]["ms"].keys()
    assert "A rehearsal on a CPU" in capsys.readouterr().out


# What a run says


def judged(found, rival=FUSED):
    wanted = ("linear-causal", "forward", 4096, rival)
    key = {
        (v.work.name, v.target.passes, v.target.length, v.target.rival): v for v in verdicts.verdicts(found)
    }
    return key[wanted]


@pytest.mark.parametrize(("theirs", "outcome"), [(4.0, "met"), (3.9, "short"), (3.1, "missed")])
def test_the_fastest_backend_is_judged_by_its_target_and_by_the_gate(theirs, outcome):
    found = results(race(timed(triton=1.0, parallel=3.0, fused=theirs)))
    assert (judged(found).ours, judged(found).outcome) == ("triton", outcome)
    assert bool(verdicts.failed(found)) == (outcome == "missed")


def test_a_peer_that_is_not_there_fails_nothing_and_ours_does():
    peer = results(
        race(timed({FLA: "it is not installed", "triton": "it refuses: no"}, parallel=1.0, fused=9.0))
    )
    assert judged(peer, FLA).reason == "it is not installed"
    assert verdicts.failed(peer) == []
    own = results(race(timed({"triton": "RuntimeError: no"}, parallel=1.0, fused=9.0)))
    assert verdicts.failed(own) == [f"{FIRST}, triton: RuntimeError: no"]


def test_kernels_are_proven_where_all_that_were_checked_are_right(monkeypatch):
    monkeypatch.setattr(availability, "version", lambda: (3, 6, 0))
    right = results(check("triton", RIGHT), check("parallel", WRONG))
    assert "frozenset({(9, (3, 6, 0))})" in document.next_steps(right, Path("found.json"))
    unproven = [WRONG, {"failed": "it fell over"}, {"unmeasured": "no time was left"}, REFUSED]
    found = [results(check("triton", wrong)) for wrong in unproven]
    for one in (*found, right | {"only": ["linear-causal"]}):
        steps = document.next_steps(one, Path("found.json"))
        assert "frozenset" not in steps
        assert "--read found.json --write docs/performance.md" in steps


def test_the_page_has_every_target_of_the_data():
    chapter = document.chapter_of(PAGE.read_text())
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in chapter.splitlines()]
    told = {(line[0], line[1], line[2], line[5], line[8]) for line in lines if len(line) == 10}
    for work in WORKS:
        for target in work.targets:
            ratio = f"{target.ratio:.3g}×"
            assert (work.title, target.passes, f"{target.length:,}", target.rival, ratio) in told
    if document.UNMEASURED in chapter:
        assert chapter == document.chapter(None), "write the page's chapter: document.with_chapter"


def test_a_chapter_takes_the_place_of_another_and_nothing_else():
    page = "above\n" + document.chapter(None) + "below\n"
    found = document.chapter(results(race(timed(triton=1.0, fused=8.0)), check("triton", RIGHT)))
    assert document.with_chapter(page, found) == "above\n" + found + "below\n"
    assert "NVIDIA H200" in found
    assert "8×" in found
    assert document.chapter_of("above\n" + found + "below\n") == found
    with pytest.raises(ValueError, match="no chapter"):
        document.with_chapter("above\n", found)


def test_the_command_reads_what_it_saved_and_writes_its_chapter(tmp_path, capsys):
    saved, page = tmp_path / "saved.json", tmp_path / "page.md"
    page.write_text("above\n" + document.chapter(None))
    arguments = ["--device", "cuda", "--read", str(saved), "--write", str(page)]
    saved.write_text(json.dumps(results(race(timed(triton=1.0, fused=8.0)))))
    assert command.main(arguments) == 0
    assert "NVIDIA H200" in page.read_text()
    saved.write_text(json.dumps(results(rehearsal=True)))
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "has no figures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rehearse", "--rehearse is of --device cuda"),
        ("--device cuda --rehearse --threads 2", "--threads is of --device cpu"),
        ("--device cuda --rehearse --write FILE", "a rehearsal has no figures"),
        ("--device cuda --rehearse --only favour", "no row begins with 'favour'"),
        ("--device cuda --quick", "PyTorch finds no card"),
    ],
)
def test_what_cannot_be_asked_for_is_bad_usage(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_names_of_works_are_listed_and_are_their_own(capsys):
    assert command.main(["--device", "cuda", "--list"]) == 0
    names = capsys.readouterr().out.split()
    assert names == [work.name for work in WORKS]
    assert len(set(names)) == len({work.title for work in WORKS}) == len(WORKS)


def test_a_machine_with_a_card_needs_no_package_of_a_comparison():
    blocked = "import sys; sys.modules |= dict.fromkeys(('pydantic', 'polars', 'rich', 'typer', 'lightning'))"
    code = f"{blocked}; from benchmarks import __main__; from benchmarks.cuda import suite, times, checks"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PAGE.parents[1])
