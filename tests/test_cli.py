"""The command line: what it prints, where, and the status it ends with."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import pytest
import report_samples as made_up
import typer
from filelock import FileLock
from own_sample import write
from usage import assert_refused

from subquad.bounds import Count
from subquad.cli.check import show_all
from subquad.cli.options import with_options_of
from subquad.config import Config, Help
from subquad.experiments.predictor import load_model
from subquad.extras import MissingExtra, require
from subquad.records import Store
from subquad.registry import catalog

TINY = ["--steps", "4", "--dim", "8", "--depth", "1", "--heads", "2", "--batch", "8"]

WRONG = """
from subquad.mechanisms.linear import LinearAttention

class Wrong(LinearAttention):
    def forward(self, q, k, v, *, valid=None):
        return super().forward(q, k, 2 * v, valid=valid)
"""


def subquad(*arguments, cwd=None, before=""):
    """The command in a process of its own, `before` having been run in it."""
    code = f"import sys\n{before}\nfrom subquad.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture
def call(command_line):
    return command_line


def test_help_loads_nothing_heavy_and_names_every_command():
    heavy = "{'torch', 'polars', 'lightning', 'numpy', 'scipy', 'sklearn', 'pydantic'}"
    told = subquad(
        "--help", before=f"import atexit; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    )
    assert told.returncode == 0
    assert told.stdout.endswith("set()\n")
    for command in (
        "compare",
        "choose",
        "generate",
        "fidelity",
        "bench",
        "pattern",
        "check",
        "list",
        "report",
    ):
        assert re.search(rf"^\W*{command} ", told.stdout, re.MULTILINE)


def test_help_answers_within_half_a_second():
    def seconds():  # of the processor: others may be using it too
        before = os.times()
        subquad("--help")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(missing):
    told = subquad("--help", before=f"sys.modules[{missing!r}] = None")
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1
    assert 'pip install "subquad[compare]"' in told.stderr


def test_without_transformers_pretrained_models_say_what_to_install(tmp_path):
    missing = "sys.modules['transformers'] = None"
    told = subquad("fidelity", "--model", tmp_path, "--text", tmp_path, before=missing)
    assert (told.returncode, told.stdout) == (2, "")
    remedy = 'subquad: pretrained models need transformers: pip install "subquad[huggingface]"'
    assert told.stderr.splitlines()[-1] == remedy


def test_what_an_extra_brings_is_refused_where_it_is_missing_or_too_old():
    require("torch", extra="compare", user="models", since=(2, 6))
    with pytest.raises(MissingExtra, match=r'models need torch 99\.1 or later, not .*"subquad\[compare\]"'):
        require("torch", extra="compare", user="models", since=(99, 1))
    with pytest.raises(MissingExtra, match='models need no_such_package: pip install "subquad'):
        require("no_such_package", extra="compare", user="models")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare --attention liner", "unknown mechanism 'liner'; did you mean 'linear'?"),
        ("check listop", "unknown mechanism or task 'listop'; did you mean 'listops'?"),
        ("compare --attention performer:feature=3", "'performer' has no option 'feature'; did you mean"),
        ("compare --dim 30 --heads 4", "dim must be a multiple of heads, and 30 is none of 4"),
        (
            "compare transactions --target chrun",
            "'transactions' has no target 'chrun'; did you mean 'churn'?",
        ),
        ("compare nothing", "unknown task 'nothing'"),
        ("compare custom", "give a schema file (--data schema.toml)"),
        ("compare --data no.toml", "no.toml: no such file"),
        ("compare transactions --data no.toml", "no.toml: no such file"),
        (
            "compare --target churn",
            "target 'churn' is that of one task, and there are 2: name it with its task",
        ),
        (
            "bench infinity --dtype int8",
            "dtype must be one of float32, bfloat16, float16, float64, not 'int8'",
        ),
        ("bench --length 8 --length 8", "give each length once, not [8, 8]"),
        ("compare --lengths 64,x", "--lengths takes whole numbers of at least 1, not 'x'"),
        ("compare --no-bench --lengths 64", "lengths [64] are those of the bench, which is left out"),
        ("compare --learning-rate 0", "learning_rate must be a positive number, not 0.0"),
        ("compare --dropout 1", "dropout must be at least 0 and below 1, not 1.0"),
        ("compare --device cuda:7", "no device 'cuda:7' here"),
        ("compare --precision 8", "precision must be one of 32-true, bf16-mixed"),
        ("fidelity --attention liner", "unknown mechanism 'liner'; did you mean 'linear'?"),
        ("fidelity --attention reformer", "'reformer' takes no k, of which a model's attention is made"),
        ("fidelity --attention nystromformer --causal", "'nystromformer' has no causal form"),
        ("fidelity --attention conformer", "'conformer' has whole layers, and fidelity is of attention"),
        ("fidelity --norms 1,x", "--norms takes numbers with commas between them, not '1,x'"),
        ("fidelity --threshold 0.2", "--threshold is of the layers of a model"),
        ("fidelity --norms 0", "norm must be a positive number, not 0.0"),
        ("fidelity --cosines 2", "cosine must be between 0 and 1, not 2.0"),
        ("fidelity --norms 1,1", "give each norm once, not [1.0, 1.0]"),
        ("fidelity --head-dim 1", "head_dim must be at least 2, for there to be angles"),
        ("check", "name one mechanism or task, PACKAGE:CLASS, or give --all"),
        ("check linear --all", "name one mechanism or task, PACKAGE:CLASS, or give --all"),
        ("check no_such_module:Attention", "'no_such_module' cannot be imported"),
        ("check json:JSONDecoder", "'JSONDecoder' in 'json' is not a subclass of subquad.Mechanism"),
        ("report nowhere", "no comparison in 'nowhere'"),
    ],
)
def test_bad_usage_is_one_line_and_status_2_before_anything_runs(
    call, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert_refused(call, tmp_path, arguments, message)


def test_an_unknown_flag_or_a_number_out_of_range_is_bad_usage(call):
    for arguments in (["compare", "--stpes", "3"], ["compare", "--steps", "0"], ["bench", "--length", "0"]):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert arguments[1] in err


def test_an_internal_error_shows_no_traceback_and_says_where_it_is(call, monkeypatch):
    monkeypatch.setattr("subquad.tasks.catalog", None)
    status, _, err = call("list")
    assert status == 2
    assert err.startswith("subquad: internal error: ")
    assert err.count("\n") == 1
    details = Path(err.split()[-1])
    assert "Traceback" in details.read_text()
    details.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "9" * 15], "out of memory: "),
        (["--attention", f"performer:features={2**63 - 1}"], "out of memory: Storage size"),
        (["--attention", "(" * 900 + "linear&softmax" + ")" * 900], "what was given has too many levels"),
        (["--seeds", "9" * 30], "seeds must be a number of at most 64 bits"),
    ],
)
def test_what_no_machine_can_hold_is_one_line(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    schema = write(tmp_path / "own")
    status, out, err = call("compare", "custom", "--data", schema, *TINY, "--attention", "linear", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"subquad: {message}")
    assert err.count("\n") == 1


def test_the_version_is_that_of_the_package(call):
    assert call("--version") == (0, f"subquad {version('subquad')}\n", "")


@pytest.mark.parametrize(
    "command",
    ["compare", "choose", "generate", "fidelity", "bench", "check", "pattern", "list", "report"],
)
def test_the_help_of_a_command_ends_with_examples_that_it_takes(call, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = call(command, "--help")
    _, _, shown = out.partition("Examples:")
    lines = [shlex.split(line) for line in shown.splitlines() if line.strip()]
    assert status == 0
    assert lines
    for program, name, *words in lines:
        assert (program, name) == ("subquad", command)
        flags = {word for word in words if word.startswith("--")}
        assert all(f"{flag} " in out for flag in flags)


def test_every_option_of_a_comparison_can_be_given_on_the_command_line(call, monkeypatch):
    configs = []
    monkeypatch.setattr("subquad.experiments.comparison.plan", lambda x, **_: configs.append(x) or exit(0))
    told = "--length 64 --seeds 2 --dim 16 --depth 1 --heads 2 --positions rotary --dropout 0.2 --steps 5"
    told += " --batch 3 --accumulate 2 --learning-rate 0.1 --weight-decay 0.2 --clip 2 --precision 64-true"
    told += " --lengths 8,16 --workers 2 --executor far --device cpu --timeout 9"
    told += " --attention linear,softmax --mlp-ratio 2 --carry 1"
    call("compare", "transactions", "--target", "spend", *told.split())
    call("compare", "custom", "--data", "s.toml", "--no-bench", "--devices", "2", "--accumulate", "2")
    for part in ("model", "training", None):
        chosen = [getattr(config, part) if part else config for config in configs]
        for option in fields(chosen[0]):
            default = getattr(type(chosen[0])(), option.name)
            assert any(getattr(each, option.name) != default for each in chosen), option.name


@dataclass(frozen=True, kw_only=True)
class Sizes(Config):
    height: Annotated[Count, Help("How high.")] = 3


def test_an_option_of_a_config_is_one_of_a_command_with_its_default_and_bound():
    app, built = typer.Typer(), []

    @app.command()
    @with_options_of(sizes=None)
    def command(name: str, sizes: Sizes = Sizes(height=4)) -> None:
        built.append((name, sizes))

    app(["a", "--height", "5"], standalone_mode=False)
    app(["b"], standalone_mode=False)
    assert built == [("a", Sizes(height=5)), ("b", Sizes(height=4))]
    with pytest.raises(SystemExit, match="2"):
        app(["a", "--height", "0"])


def test_a_list_in_80_columns_breaks_no_name(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("list")
    words = set(out.split())
    assert max(map(len, out.splitlines())) <= 80
    for name, cls in catalog().items():
        assert {name, cls.traits.family.split()[0], cls.traits.paper.removeprefix("arXiv:")} <= words


def test_list_tells_traits_options_and_targets(call):
    status, out, _ = call("list", "--json")
    known = {found["name"]: found for found in json.loads(out)}
    assert status == 0
    assert known["performer"]["kind"] == "mechanism"
    assert known["dpfp"]["options"] == {"nu": 1}
    assert known["infinity"]["causal"] == "strict"
    assert known["infinity"]["bidirectional"] is False
    assert known["transactions"]["targets"] == ["churn", "spend"]
    status, out, _ = call("list")
    assert status == 0
    assert all(name in out for name in known)


@pytest.mark.slow
def test_a_certificate_fails_with_status_1_and_says_what_and_by_how_much(tmp_path):
    (tmp_path / "mine.py").write_text(WRONG)
    told = subquad("check", "mine:Wrong", "--json", cwd=tmp_path)
    assert told.returncode == 1, told.stderr
    written = json.loads(told.stdout)
    lines = {line["check"]: line for line in written["certificates"]["mine:Wrong (linear)"]}
    assert written["failed"] == sum(not line["passed"] for line in lines.values()) > 0
    assert lines["signature"]["passed"]
    assert "difference" in lines["matches_definition"]["reason"]
    assert "FAILED" in told.stderr


@pytest.mark.slow
def test_many_certificates_come_in_order_with_a_table_whatever_dies_on_the_way(tmp_path, monkeypatch, capsys):
    (tmp_path / "fatal.py").write_text("import os\nos._exit(3)")
    monkeypatch.chdir(tmp_path)
    names = ["copying:train=200", "fatal:Attention"]
    made, failed = show_all(names, as_json=False)
    assert [name for name, _ in made] == names
    assert failed == 1
    (copying, fatal), told = (lines for _, lines in made), capsys.readouterr().out
    assert all(line["passed"] for line in copying)
    assert "try `subquad check fatal:Attention`" in fatal[0]["reason"]
    rows = [line.split()[:3] for line in told.splitlines()]
    assert ["copying:train=200", str(len(copying)), "0"] in rows
    assert ["fatal:Attention", "0", "1"] in rows
    assert f"{len(copying)} of {len(copying) + 1} checks passed" in told


@pytest.mark.slow
def test_bench_tells_times_exponents_and_crossovers(call, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = ["bench", "infinity:segment=16", "--heads", "2", "--head-dim", "4", "--out", str(tmp_path)]
    asked += ["--length", "64", "--length", "32", "--length", "16"]
    status, out, err = call(*asked, "--json")
    assert status == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["label"], row["form"]) == ("infinity:segment=16", "causal")
    assert [cell["length"] for cell in row["cells"]] == [16, 32, 64]
    assert row["scaling"]["forward_ms"]["exponent"] is not None
    status, out, err = call(*asked)
    assert status == 0
    assert "3 of 3 runs are on record and not done again" in err
    assert "infinity:segment=16" in out


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of one mechanism on a small data set: its command, its folder and what it printed."""
    folder = tmp_path_factory.getbasetemp().parent / f"compared {os.environ.get('PYTEST_XDIST_TESTRUNUID')}"
    with FileLock(f"{folder}.lock"):  # one for all of xdist's workers
        asked = ["compare", "--data", str(write(folder / "own")), "--attention", "linear", *TINY]
        asked += ["--out", str(folder / "runs")]
        told = subquad(*asked, "--json")
    assert told.returncode == 0, told.stderr
    return asked, folder / "runs", told


@pytest.mark.slow
def test_compare_ends_with_rows_an_answer_models_and_a_page(compared):
    _, _, told = compared
    written = json.loads(told.stdout)
    assert {row["label"] for row in written["tasks"][0]["rows"]} == {
        "linear",
        "majority",
        "gradient boosting",
    }
    assert written["failed"] == 0
    assert written["answer"]["sentence"]
    assert load_model(written["tasks"][0]["models"]["linear"][0]).fit["mechanism"]["attention"] == "linear"
    assert Path(written["report"]).read_text().lower().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_same_comparison_again_does_nothing_and_tells_the_same(compared):
    asked, folder, _ = compared
    runs = 3 + 5  # a fit, two baselines, and five lengths of the bench
    assert len(list((folder / "records").iterdir())) == runs
    again = subquad(*asked)
    assert again.returncode == 0
    assert f"{runs} of {runs} runs are on record and not done again" in again.stderr
    assert "started" not in again.stderr
    assert str(folder / "reports") in again.stdout
    assert subquad("report", str(folder)).stdout == again.stdout


def test_report_ends_with_1_while_runs_are_missing_and_says_how_many(call, tmp_path):
    setting = made_up.comparison(made_up.ROWS[:2])
    records = made_up.sample(setting)
    made_up.write(tmp_path, setting, records)
    assert call("report", str(tmp_path))[0] == 0
    for record in records[-3:]:
        Store(tmp_path).record_path(record["key"]).unlink()
    status, out, _ = call("report", str(tmp_path))
    assert status == 1
    assert f"3 of {len(records)} runs are missing" in out
    status, out, _ = call("report", str(tmp_path), "--json")
    assert (status, json.loads(out)["missing"]) == (1, 3)


def test_page_terminal_and_json_tell_the_same_answer(call, tmp_path):
    setting = made_up.comparison(made_up.ROWS[:3])
    made_up.write(tmp_path, setting, made_up.sample(setting))
    answer = json.loads(call("report", str(tmp_path), "--json")[1])["answer"]
    told = " ".join(call("report", str(tmp_path))[1].split())
    page = unescape(re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text("utf-8")))
    for line in (answer["sentence"], *answer["reasons"]):
        assert line in told
        assert line in page


@pytest.mark.slow
def test_a_run_that_failed_is_shown_and_the_status_is_1(call, compared, tmp_path):
    shutil.copytree(compared[1], tmp_path / "runs")
    store = Store(tmp_path / "runs")
    (fit,) = store.read(store.get_comparison()["tasks"][0]["keys"]["fit"])
    store.put({**fit, "status": "out of memory", "reason": "killed", "result": {}, "measured": {}})
    status, out, _ = call("report", str(tmp_path / "runs"))
    assert status == 1
    assert "out of memory" in out
