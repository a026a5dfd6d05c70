"""Several comparisons in one folder, one after the other and at once: each command shows its own."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import report_samples as made_up
from own_sample import write

from subquad import report
from subquad.__main__ import main
from subquad.executors import local
from subquad.experiments import comparison
from subquad.records import Store, comparison_key

SETTING = made_up.comparison(made_up.ROWS[:1], seeds=1)
FOUND = {record["kind"]: record for record in made_up.sample(SETTING)}

# stands for `subquad.executors.child`: finds at once what was made up
STAND_IN = f"""
import json, sys
found = { ({kind: {part: r[part] for part in ("result", "measured")} for kind, r in FOUND.items()})!r}
job = json.loads(sys.stdin.readline())
kind = job["type"].partition(":")[2].lower()
outcome = {{"event": "outcome", "status": "ok", "reason": "", "data": {{}}, **found[kind]}}
print(json.dumps({{"token": job["token"], **outcome}}))
"""


@pytest.fixture
def commands(tmp_path, monkeypatch, capsys):
    """`subquad compare` and `subquad report`, whose runs take no time: what they print as JSON."""
    monkeypatch.setattr(local, "COMMAND", [sys.executable, "-c", STAND_IN])
    schema = write(tmp_path / "own")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["subquad", *arguments, "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        return json.loads(capsys.readouterr().out)

    def run(attention):
        asked = ("compare", "--data", str(schema), "--attention", attention, "--dim", "8", "--heads", "2")
        return call(*asked, "--out", str(tmp_path / "runs"))

    return SimpleNamespace(compare=run, report=lambda *key: call("report", str(tmp_path / "runs"), *key))


def rows(told):
    """The mechanisms that a command told of, which must be those of the page that it names."""
    labels = [row["label"] for row in told["tasks"][0]["rows"] if row["kind"] == "mechanism"]
    text = Path(told["report"]).read_text()
    assert [label for label in ("linear", "taylor") if f"--attention {label}" in text] == labels
    return labels


def test_a_comparison_after_another_leaves_its_page_and_becomes_the_latest(commands, tmp_path):
    first, second = commands.compare("linear"), commands.compare("taylor")
    assert (rows(first), rows(second)) == (["linear"], ["taylor"])
    assert first["report"] != second["report"]
    assert (tmp_path / "runs" / "report.html").read_text() == Path(second["report"]).read_text()
    assert rows(commands.report()) == ["taylor"]
    assert rows(commands.report(comparison_key(first["comparison"]))) == ["linear"]
    assert (tmp_path / "runs" / "report.html").read_text() == Path(second["report"]).read_text()


def test_a_command_shows_its_own_comparison_whatever_another_does_meanwhile(commands, tmp_path, monkeypatch):
    run_missing, within, stdout = comparison.run_missing, [], sys.stdout

    def interrupted(*args, **options):
        monkeypatch.setattr(comparison, "run_missing", run_missing)
        with redirect_stdout(stdout):  # what is printed during runs goes to standard error
            within.append(commands.compare("taylor"))
        return run_missing(*args, **options)

    monkeypatch.setattr(comparison, "run_missing", interrupted)
    around = commands.compare("linear")
    assert (rows(around), rows(within[0])) == (["linear"], ["taylor"])
    assert (tmp_path / "runs" / "report.html").read_text() == Path(around["report"]).read_text()
    assert rows(commands.report()) == ["linear"]  # it ended last
    assert rows(commands.report(comparison_key(within[0]["comparison"]))) == ["taylor"]


def test_the_page_of_a_named_comparison_is_written_without_a_readable_latest(tmp_path):
    made_up.write(tmp_path, SETTING, list(FOUND.values()))
    key = comparison_key(Store(tmp_path).get_comparison())
    (tmp_path / "comparison.json").write_text("{")
    assert report.write(tmp_path, key) == Store(tmp_path).page_path(key)
    assert not (tmp_path / "report.html").exists()
