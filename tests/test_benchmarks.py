"""The benchmark suite on made-up results, and on lengths too short to say anything."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from subquad.measure.peers import PEERS
from subquad.ops.backends import wanted

sys.path.insert(0, str(Path(__file__).parent.parent))  # `benchmarks` is no part of the package

from benchmarks import __main__ as command
from benchmarks import correctness, document, rooflines, subjects, suite, verdicts, worker
from benchmarks.claims import Claim, from_where
from benchmarks.targets import FUSED, ROWS, against

ROW = {row.name: row for row in ROWS}
SHORT = 64


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def timed(median, *, spread=1.0):
    return {"median": median, "low": median / spread, "high": median * spread, "repeats": 5}


def results(name="linear-causal", *, ours=1.0, theirs=12.0, length=2048, **cell):
    cell = {"ms": {"kernel": timed(ours), "torch": timed(ours), FUSED: timed(theirs)}, "missing": {}} | cell
    cells = {str(length): {"roofline_ms": 0.5, "seen": None} | cell}
    machine = {"cpu": "a|b", "cores": 2, "memory_gb": 1, "os": "none", "python": "3"}
    return {
        "quick": True, "only": [], "machine": machine, "versions": {}, "backend": "", "commit": "",
        "rows": {name: {"1": cells}}, "memory": {}, "claims": {}, "seconds": 0,
    }  # fmt: skip


def outcome(found, *, length=2048, tier="kernel", rival=FUSED):
    return next(
        verdict
        for verdict in verdicts.verdicts(found)
        if (verdict.target.length, verdict.target.tier, verdict.target.rival) == (length, tier, rival)
    )


@pytest.mark.parametrize(("ratio", "word"), [(12.0, "met"), (11.9, "short"), (9.7, "short"), (9.5, "missed")])
def test_a_ratio_is_judged_by_its_target_and_by_the_gate(ratio, word):
    assert outcome(results(theirs=ratio)).outcome == word


def test_only_what_falls_below_the_gate_fails_the_command():
    def failed(ratio):
        return verdicts.failed([outcome(results(theirs=ratio))], [])

    assert not failed(9.7)
    assert len(failed(9.5)) == 1


def test_a_ratio_lies_between_those_of_opposite_quartiles():
    ratio = verdicts.quotient(timed(2.0, spread=1.5), timed(8.0, spread=2.0))
    assert ratio.median == 4
    assert ratio.low == pytest.approx(4 / 3)
    assert ratio.high == pytest.approx(12)


def test_the_target_of_a_pattern_hangs_on_the_part_of_the_pairs_it_has():
    found = results("bigbird", length=4096, seen=0.1)
    assert outcome(found, length=4096, tier="torch").aim == pytest.approx(6)


def test_a_missing_peer_fails_nothing_and_a_row_that_breaks_fails():
    found = results(length=4096, missing={"fla linear": "not installed"}, theirs=100.0)
    assert outcome(found, length=4096, rival="fla linear").reason == "not installed"
    assert not verdicts.failed([outcome(found, length=4096, rival="fla linear")], [])
    found["rows"]["linear-causal"]["1"] = {"failed": "it fell over"}
    assert verdicts.failed(verdicts.verdicts(found), []) == ["linear-causal did not run: it fell over"]


def test_memory_is_compared_as_time_is():
    found = results("favor-training", length=4096)
    found["memory"] = {"favor-training": {"4096": {"kernel": {"mb": 10}, "performer-pytorch": {"mb": 60}}}}
    judged = [v for v in verdicts.verdicts(found) if v.target.figure == "memory"]
    assert [v.outcome for v in judged] == ["met"]


def test_a_claim_that_was_not_measured_is_not_met():
    claims = verdicts.claims({"claims": {"stream": {"failed": "no end"}}})
    assert [(claim.found, claim.met) for claim in claims] == [("no end", False)]
    gated = Claim(name="a", claimed="b", found="c", met=False, gate=True)
    assert verdicts.failed([], [gated, replace(gated, gate=False)]) == ["a: c"]


def test_a_crossover_is_where_it_stays_faster():
    assert from_where({64: 1.2, 128: 0.9, 256: 1.1, 512: 2.0}) == 256
    assert from_where({64: 1.2, 128: 1.3}) == 64
    assert from_where({64: 2.0, 128: 0.9}) == float("inf")


def test_quick_leaves_out_long_sequences_where_there_are_shorter():
    assert verdicts.selected(ROW["favor"], quick=True) == (1024, 2048, 4096)
    assert verdicts.selected(ROW["reformer"], quick=True) == (8192,)
    assert verdicts.selected(ROW["decoding"], quick=True) == (1024, 8192, 32768)


def test_every_row_has_a_name_of_its_own_and_a_title_of_its_own():
    assert len(ROW) == len(ROWS) == len({row.title for row in ROWS})


def test_the_page_tells_every_target_and_bars_break_no_table():
    page = document.page(results(), cuda="")
    assert page.count("| causal linear m = 64, forward ") == 7  # six targets, and of the roofline
    assert "12× (12–12)" in page
    assert "\\|" not in document.table(("a",), [("b",)])
    lines = document.table(("a", "b"), [("1|2", "3")]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_switching_the_kernels_off_lasts_no_longer_than_the_call():
    assert (subjects.without_kernels(wanted)(), wanted()) == ("reference", None)


@pytest.mark.parametrize("name", ["favor", "linear-causal-training", "decoding", "training-linear"])
def test_everyone_in_a_row_can_be_called(name):
    row = replace(ROW[name], targets=against(FUSED, "kernel", {SHORT: 1}))
    called = subjects.calls(row, SHORT, compiled=False)
    assert FUSED in called
    for call in called.values():
        assert not isinstance(call, subjects.Missing)
        call()


def test_a_peer_that_is_not_there_says_what_to_install(monkeypatch):
    absent = replace(PEERS["linformer"], modules=("no_such_package",))
    monkeypatch.setattr(subjects, "PEERS", {"linformer": absent})
    row = replace(ROW["linformer"], targets=against("linformer", "kernel", {SHORT: 1}))
    missing = subjects.calls(row, SHORT, compiled=False)["linformer"]
    assert missing == subjects.Missing('not installed: pip install "linformer"')


def test_a_wrong_answer_is_not_timed(monkeypatch):
    row = ROW["linear-causal"]
    correctness.require_right(row)
    ours = subjects.mechanism(row, correctness.TOKENS)
    monkeypatch.setattr(type(ours), "forward", lambda self, q, k, v: v)
    with pytest.raises(ArithmeticError, match="off by"):
        correctness.require_right(row)


def test_the_roofline_of_features_counts_four_products_a_token():
    row = ROW["favor"]
    work = rooflines.work(row, subjects.mechanism(row, SHORT), SHORT)
    assert work is not None
    assert work.flops == 8 * (8 * SHORT * 64 * 256)
    assert work.exponentials == 8 * 2 * SHORT * 256


def test_the_density_of_a_window_counts_its_keys():
    row = replace(ROW["window"], options={"width": 3})
    assert rooflines.density(subjects.mechanism(row, 8), 8) == pytest.approx((4 * 8 - 6) / 64)


def test_the_command_reads_what_it_kept_and_fails_on_a_missed_gate(tmp_path, capsys):
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    command.save(kept, results(theirs=2.0))
    assert command.main(["--read", str(kept), "--write", str(page)]) == 1
    told = capsys.readouterr()
    assert "**MISSED**" in told.out
    assert "the gate is 9.6" in told.err
    assert page.read_text().startswith("# Speed and memory")


def test_an_unknown_row_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--only", "no-such-row"])
    assert ended.value.code == 2
    assert "no-such-row" in capsys.readouterr().err


def test_a_run_that_was_interrupted_says_so():
    assert "interrupted" in document.page(results(), cuda="")
    assert "interrupted" not in document.page(results() | {"finished": True}, cuda="")


def test_names_are_listed(capsys):
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == suite.names()[0] == "favor"


def test_a_run_goes_on_where_the_last_one_stopped(monkeypatch):
    jobs = []

    def run(job, *, timeout):
        jobs.append(list(job.options["threads"]))
        return {"threads": {str(count): {"2048": {"ms": {}, "missing": {}}} for count in jobs[-1]}}

    monkeypatch.setattr(suite.worker, "run", run)
    monkeypatch.setattr(suite, "commit", lambda: "abc")
    options = {"only": ["window-training"], "quick": True, "say": print, "save": lambda _: None}
    first = suite.run(**options, threads=(1,))
    suite.run(**options, threads=(1, 2), before=first)
    assert jobs == [[1], [2]]
    monkeypatch.setattr(suite, "commit", lambda: "abc-dirty")
    suite.run(**options, threads=(1,), before=first | {"commit": "abc-dirty"})
    assert jobs == [[1], [2], [1]]


def test_a_measurement_runs_in_a_process_of_its_own_and_a_missing_rival_fails_it():
    found = worker.run(memory("torch"), timeout=120)
    assert found["mb"] >= 0
    lost = worker.run(memory("performer-pytorch, compiled"), timeout=120)
    assert set(lost) == {"failed"}


def memory(who):
    return worker.Job(measure="memory", options={"name": "favor-training", "length": SHORT, "who": who})


@pytest.mark.parametrize(
    ("measure", "result", "message"),
    [
        ("memory", {"mb": "1", "method": "counted"}, "mb: input should be a valid number"),
        (
            "race",
            {"threads": {"1": {"64": {"ms": {}, "missing": {}}}}},
            r"threads\.1\.64\.roofline_ms: is missing",
        ),
        ("stream", {"claims": [{"name": "a"}]}, r"claims\.0\.claimed: .*missing"),
    ],
)
def test_what_a_measurement_gives_back_is_held_against_its_type(measure, result, message):
    job = worker.Job(measure=measure, options={})
    with pytest.raises(ValueError, match=message):
        job.check({"status": "ok", "result": result})
    job.check({"status": "failed", "result": {}})
