"""`subquad choose` and `subquad.choose`: from a need to runs, and from their records to an answer."""

import json
import sys
from dataclasses import fields
from functools import partial

import pytest
import report_samples as made_up
from own_sample import write
from usage import assert_refused

import subquad
from subquad.cli.options import megabytes
from subquad.executors import local
from subquad.experiments import choice
from subquad.experiments.choice import expected_seconds, plan, why_unfit
from subquad.experiments.config import CANDIDATES, TASK_KINDS, Choice, InputsConfig
from subquad.experiments.spec import Bench, Stream
from subquad.mechanism import Dims
from subquad.registry import build, catalog
from subquad.report.recommendation import recommendation_of, shortlist

LENGTHS = (1024, 4096, 8192)
SETTING = made_up.comparison(seeds=1, metric="accuracy")
SCORES = {"softmax": 0.97, "linear": 0.4, "performer": 0.96}
FITS = {name: made_up.fit(made_up.row(name), 0, SETTING, score=score) for name, score in SCORES.items()}
BENCHES = {
    f"{name} {length}": made_up.bench(made_up.row(name), length, SETTING)
    for name in ("linear", "performer", "softmax")
    for length in LENGTHS
}
BASELINE = made_up.baseline("majority", 0, SETTING, score=0.1)
TIMING = {"median": 1.0, "low": 0.9, "high": 1.1, "repeats": 9}
STEP = {"step": {"ms": TIMING, "reference_ms": {**TIMING, "median": 5.0, "low": 4.9, "high": 5.1}}}

# stands for `subquad.executors.child`: finds at once what was made up
STAND_IN = f"""
import json, sys
parts = ("result", "measured")
fits = { ({name: {part: fit[part] for part in ("result", "measured")} for name, fit in FITS.items()})!r}
benches = { ({name: cell["measured"] for name, cell in BENCHES.items()})!r}
job = json.loads(sys.stdin.readline())
spec, kind = job["spec"], job["type"].partition(":")[2]
name = spec.get("mechanism", {{}}).get("attention")
if kind == "Fit":
    out = fits[name]
elif kind == "Baseline":
    out = {{"result": {BASELINE["result"]!r}, "measured": {{}}}}
elif kind == "Bench":
    out = {{"result": {{}}, "measured": benches[f"{{name}} {{spec['length']}}"]}}
else:
    size = 0.02 if name == "linear" else 8.4
    out = {{"result": {{}}, "measured": {{**{STEP!r}, "state": {{"mb": size, "reference_mb": 8.4}}}}}}
outcome = {{"event": "outcome", "status": "ok", "reason": "", "data": {{}}, **out}}
print(json.dumps({{"token": job["token"], **outcome}}))
"""


@pytest.fixture
def at_once(monkeypatch):
    """Runs take no time, and neither does the probe of texts."""
    small = "needle:train=64,validation=8,test=8,tokens=24,distance=8"
    monkeypatch.setitem(choice.PROBES, "text", (small,))
    monkeypatch.setattr(local, "COMMAND", [sys.executable, "-c", STAND_IN])


@pytest.fixture
def call(command_line):
    return partial(command_line, "choose")


ASKED = ["--length", "4096", "--attention", "linear,performer", "--kind", "text"]


def test_the_fast_one_that_keeps_what_softmax_has_is_recommended(call, at_once, tmp_path):
    status, out, err = call(*ASKED, "--out", str(tmp_path), "--json")
    answer = json.loads(out)
    assert status == 0, err
    assert (answer["verdict"], answer["label"]) == ("take", "performer")
    assert {row["candidate"]["label"]: row["status"] for row in answer["rows"]} == {
        "performer": "recommended",
        "linear": "loses",
        "softmax": "slower",
    }
    assert "needle: accuracy 0.400" in next(
        row["reason"] for row in answer["rows"] if row["status"] == "loses"
    )
    assert any("If what needle asks for does not matter: linear" in each for each in answer["changes"])
    assert "2 candidates at 1,024, 4,096 and 8,192 tokens" in err


def test_the_same_command_again_does_nothing_and_says_the_same_in_80_columns(
    call, at_once, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    first = call(*ASKED, "--out", str(tmp_path))
    status, out, err = call(*ASKED, "--out", str(tmp_path))
    assert (status, out) == first[:2]
    assert "6 of 6 runs are on record and not done again" in " ".join(err.split())
    assert "started" not in err
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    answer = json.loads(call(*ASKED, "--out", str(tmp_path), "--json")[1])
    for line in (answer["paragraph"], *answer["changes"], *answer["notes"]):
        assert " ".join(line.split()) in told


def test_what_is_not_faster_is_not_trained(call, at_once, tmp_path, monkeypatch):
    status, out, _ = call(
        "--length",
        "4096",
        "--attention",
        "softmax,reformer",
        "--out",
        str(tmp_path),
        "--json",
        "--kind",
        "local",
    )  # no cell of reformer can be had
    answer = json.loads(out)
    assert (status, answer["label"]) == (1, None)
    assert not any(json.loads(path.read_text())["kind"] == "fit" for path in (tmp_path / "records").iterdir())


def test_a_stream_with_a_bounded_state_rules_softmax_out(call, at_once, tmp_path):
    asked = ["--length", "4096", "--attention", "linear,sparse-transformer", "--bounded", "--kind", "local"]
    _, out, _ = call(*asked, "--out", str(tmp_path), "--json")
    answer = json.loads(out)
    assert answer["label"] == "linear"
    assert answer["refusals"] == {"sparse-transformer": "its state grows with the stream"}
    assert "takes the next token 5.0× as fast as fused softmax" in answer["paragraph"]
    assert "its state grows with the stream: 8.40 MB after 4,096 tokens" in answer["paragraph"]


def test_a_choice_from_python_is_that_of_the_command_line(call, at_once, tmp_path):
    config = Choice(length=4096, attention=("linear", "performer"), kind="text")
    answer = subquad.choose(config, out=tmp_path)
    assert answer.paragraph == json.loads(call(*ASKED, "--out", str(tmp_path), "--json")[1])["paragraph"]


@pytest.mark.slow
def test_a_small_choice_is_measured_and_trained_from_end_to_end(tmp_path):
    config = Choice(
        length=64,
        attention=("linear",),
        task=f"custom:schema={write(tmp_path / 'own')}",
        fit=True,
        bounded=True,  # so that linear is trained, however fast it is
        steps=2,
        inputs=InputsConfig(heads=2, head_dim=4),
        device="cpu",
    )
    answer = subquad.choose(config, out=tmp_path / "runs")
    rows = {row.label: row for row in answer.rows}
    assert answer.label == "linear"
    assert rows["softmax"].status == "grows"
    assert [each.exercise for each in rows["linear"].candidate.trained] == ["custom"]
    assert rows["linear"].candidate.state_mb
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "records").iterdir()]
    assert {record["status"] for record in records} == {"ok"}
    assert sorted(record["kind"] for record in records) == ["baseline"] * 2 + ["bench"] * 3 + ["fit"] * 2 + [
        "stream"
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_ruled_out_has_the_form_that_is_asked_for(causal, streaming):
    causal = causal or streaming
    for name, cls in catalog().items():
        reason = why_unfit(cls.traits, causal=causal, streaming=streaming, bounded=False)
        dims = Dims(heads=1, head_dim=8, max_len=24)
        if not reason:
            built = build(name, dims, causal=causal, **cls.traits.tiny)
            assert built.causal == causal
            assert not streaming or built.traits.state
    assert why_unfit(catalog()["svd"].traits, causal=False, streaming=False, bounded=False)
    assert not why_unfit(catalog()["linear"].traits, causal=causal, streaming=streaming, bounded=True)


def test_every_candidate_by_default_is_known_and_all_are_measured_or_refused():
    for config in (Choice(length=64, kind="local"), Choice(length=64, kind="local", attention=("all",))):
        planned = plan(config)
        measured = {row["label"] for row in planned.document["rows"]}
        refused = set(planned.document["refusals"])
        assert not measured & refused
        named = {*CANDIDATES} if config.attention == CANDIDATES else set(catalog()) - {"softmax"}
        assert measured | refused == {"softmax", *named}
        assert {spec.mechanism.label for spec in planned.measurements} == measured - {"softmax"}


def test_lengths_are_a_quarter_the_whole_and_twice_and_streams_are_timed_if_asked_for():
    planned = plan(Choice(length=64, streaming=True, kind="local", attention=("linear",)))
    assert [spec.length for spec in planned.measurements if isinstance(spec, Bench)] == [16, 64, 128]
    assert [spec.length for spec in planned.measurements if isinstance(spec, Stream)] == [64]
    assert all(spec.mechanism.causal for spec in planned.measurements)


def test_a_task_gives_length_and_causality_and_with_a_fit_it_is_the_exercise(tmp_path):
    schema = write(tmp_path / "own")
    config = Choice(task=f"custom:schema={schema}", fit=True, attention=("linear",), steps=2)
    planned = plan(config)
    assert [exercise.label for exercise in planned.exercises] == ["custom"]
    assert planned.document["length"] == planned.exercises[0].data.length
    assert planned.training([]) == ()
    labels = [spec.mechanism.label for spec in planned.fits]
    assert labels == ["softmax", "linear"]
    assert len(planned.training(["linear"])) == len(planned.baselines) + 2
    assert expected_seconds(planned) > 2 * choice.START_S


def test_nothing_is_trained_before_anything_is_measured():
    planned = plan(Choice(length=64, kind="local", attention=("linear",)))
    assert shortlist(planned.document, []) == []
    answer = recommendation_of(planned.document, [])
    assert (answer.verdict, answer.label) == ("nothing", None)


def test_every_kind_has_probes():
    assert set(choice.PROBES) == set(TASK_KINDS)
    assert set(TASK_KINDS) > choice.CAUSAL_KINDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give a length in tokens, or a task that has one"),
        ("--length 64 --fit", "a fit and a target are those of a task: name one"),
        ("--length 64 --kind txt", "kind must be one of any, language, text"),
        ("--length 64 --memory 2", "--memory takes a size such as 500MB or 2GB, not '2'"),
        ("--length 64 --attention liner", "unknown mechanism 'liner'; did you mean 'linear'?"),
        ("--length 64 --attention local:widht=3", "'local' has no option 'widht'; did you mean 'width'?"),
        ("--length 64 --attention linear,linear", "'linear' is asked for twice"),
        ("--length 64 --dtype int8", "dtype must be one of float32"),
        ("--length 64 --device cuda:7", "no device 'cuda:7' here"),
        ("nothing --length 64", "unknown task 'nothing'"),
        ("recall --data schema.toml", "a choice is made for one task: give 'recall' or --data, not both"),
        ("recall:target=value --target value", "names a target, and 'value' is given beside it"),
        ("recall --fit --kind text", "with a fit the task itself is the test: leave the kind 'text' out"),
    ],
)
def test_bad_usage_is_one_line_and_status_2_before_anything_runs(
    call, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert_refused(call, tmp_path, arguments, message)


def test_every_option_of_a_choice_can_be_given_on_the_command_line(call, monkeypatch):
    configs = []
    monkeypatch.setattr("subquad.experiments.choice.plan", lambda x: configs.append(x) or exit(0))
    asked = "recall --length 64 --causal --streaming --bounded --memory 1.5GB --attention linear --fit"
    asked += " --steps 5 --seeds 2 --heads 2 --device cpu --timeout 9 --target value"
    call(*asked.split())
    call("--length", "64", "--kind", "text")
    default = Choice(length=4)
    for option in fields(Choice):
        values = [getattr(config, option.name) for config in configs]
        assert any(value != getattr(default, option.name) for value in values), option.name
    assert configs[0].memory_mb == 1500


@pytest.mark.parametrize(("text", "size"), [("500MB", 500), ("2 gb", 2000), ("0.5GB", 500)])
def test_sizes_are_read_in_megabytes_and_gigabytes(text, size):
    assert megabytes("--memory", text) == size
