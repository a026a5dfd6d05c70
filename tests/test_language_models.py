"""A state is carried along documents: in training, in tests, and when a trained model reads new texts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments_sample import QUICK, Interrupted, changed
from own_sample import write
from torch.testing import assert_close

import subquad
from subquad import checkpoint, records, tasks
from subquad.config import ModelConfig
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.fit import fit
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export
from subquad.experiments.spec import Fit
from subquad.experiments.streams import StreamReader
from subquad.experiments.training import Training
from subquad.experiments.trial import fit_times
from subquad.fields import Batch
from subquad.measure.stream import state_bytes
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.state import detach, leaves
from subquad.registry import catalog
from subquad.tasks.documents import Documents
from subquad.tasks.language import LanguageData
from subquad.tasks.windows import Windows, ask_next

WINDOW = 16
LENGTHS = (100, 3, 37, 64, 16, 1)
ORDER = {"size": 3, "seed": 0, "epoch": 0}
XL = {"attention": "transformer-xl", "causal": True, "options": {"segment": 12, "memory": 7}}
COMPRESSIVE = {
    "attention": "compressive",
    "causal": True,
    "options": {"segment": 10, "memory": 8, "compressed": 6, "rate": 2},
}
SOFTMAX = {"attention": "softmax", "causal": True, "options": {}}
STREAMED = (SOFTMAX, XL, COMPRESSIVE, {**SOFTMAX, "attention": "gated-delta"})
LONG = {  # with segments of 64,000 tokens, in the place of `Traits.tiny`
    "transformer-xl": {"segment": 200, "memory": 300},
    "compressive": {"segment": 200, "memory": 200, "compressed": 100, "rate": 4},
    "infinity": {"segment": 500, "basis": 8, "samples": 12},
    "infinity-gpt2": {"segment": 500, "basis": 8, "samples": 12},
    "routing": {"clusters": 3, "window": 20},
}


def texts(*lengths: int, seed: int = 0) -> list[bytes]:
    chance = np.random.default_rng(seed)
    return [chance.integers(97, 105, length, dtype=np.uint8).tobytes() for length in lengths]


WINDOWS = Windows(Documents.of(texts(*LENGTHS)), WINDOW)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    for place, text in enumerate(texts(*range(40, 240, 7))):
        (path / f"{place}.txt").write_bytes(text)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> LanguageData:
    loaded = tasks.load("language", path=str(folder), length=WINDOW)
    assert isinstance(loaded, LanguageData)
    return loaded


@pytest.fixture(scope="module")
def spec(data: LanguageData, folder: Path) -> Fit:
    return changed(
        QUICK,
        data={
            "task": "language",
            "target": "next",
            "options": {"path": str(folder)},
            "fingerprint": data.fingerprint,
            "length": WINDOW,
        },
        mechanism=XL,
        training={"steps": 30, "batch": 3, "carry": 1},
    )


def test_a_row_that_has_read_everything_is_padding_and_adds_nothing_to_a_score(data: LanguageData):
    scorer, padded = data.objective.scorer(), 0
    for batch in data.streams("train", size=2, seed=0, epoch=0, shuffle=False):
        padded += int((batch.example < 0).sum())
        assert torch.equal(batch.example < 0, ~batch.valid.any(1))
        scorer.add(torch.zeros(*batch.valid.shape, 256), batch)
    judged = scorer.result()
    assert padded
    assert len(judged.contributions) == data.count("train")
    assert judged.scores["bits_per_byte"] == pytest.approx(8)


def by_example(reader: Any, batches: Any) -> dict[int, torch.Tensor]:
    return {
        int(place): output[real].detach()
        for batch in batches
        for place, output, real in zip(batch.example, reader(batch), batch.valid, strict=True)
        if place >= 0
    }


@pytest.mark.parametrize("mechanism", STREAMED, ids=lambda mechanism: mechanism["attention"])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_documents_are_read_window_by_window_as_if_each_were_read_whole(
    spec: Fit, data: LanguageData, mechanism: Any, size: int
):
    model = build_model(changed(spec, mechanism=mechanism), data).eval()
    batches = WINDOWS.streams(ask_next, **{**ORDER, "size": size}, shuffle=False)
    outputs = by_example(StreamReader(model), batches)
    whole = Windows(WINDOWS.documents, 1000)
    for batch in whole.batches(ask_next, **{**ORDER, "size": 1}, length=1000, shuffle=False):
        mine = np.flatnonzero(WINDOWS.document == int(batch.example))
        expected = model(batch.inputs, None)[0]
        assert_close(torch.cat([outputs[place] for place in mine.tolist()]), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(n for n, cls in catalog().items() if cls.traits.state == "growing"))
def test_a_growing_state_is_no_longer_than_the_longest_row_and_a_window(
    spec: Fit, data: LanguageData, name: str
):
    growing = {**SOFTMAX, "attention": name, "options": dict(catalog()[name].traits.tiny)}
    model = build_model(changed(spec, mechanism=growing), data).eval()
    reader = StreamReader(model)
    many = Windows(Documents.of(texts(*[40, 24] * 20)), WINDOW)
    with torch.no_grad():
        for batch in many.streams(ask_next, **ORDER, shuffle=True):
            reader(batch)
        _, longest = model.encoder.step(torch.zeros(1, 3 * WINDOW + 2 * WINDOW, model.config.encoder.dim))
    assert reader.row_bytes <= state_bytes(longest)


def windows_of_one_text(count: int) -> list[Batch]:
    windows = Windows(Documents.of(texts(count * WINDOW)), WINDOW)
    return list(windows.streams(ask_next, size=1, seed=0, epoch=0, shuffle=False))


def gradients(training: Training) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in training.model.named_parameters()
    }


@pytest.mark.parametrize("carry", [1, 2, 4])
def test_gradients_flow_through_so_many_windows_and_no_further(
    spec: Fit, data: LanguageData, tmp_path: Path, carry: int
):
    """Against whole texts, in which what is older than `carry` windows' beginning is held fixed."""
    asked = changed(
        spec, model={"dropout": 0.0}, mechanism=SOFTMAX, training={"accumulate": 4, "carry": carry}
    )
    training = Training(asked, data, checkpoint_path=tmp_path / "none", tell=lambda *_: None)
    batches = windows_of_one_text(4)
    for first in range(0, 4, carry):
        training.learn(batches[first : first + carry])
    truncated = gradients(training)
    training.optimiser.zero_grad()
    state, loss = None, torch.zeros(())
    for first in range(0, 4, carry):
        several = batches[first : first + carry]
        ids = torch.cat([batch.inputs[0] for batch in several], 1)
        if state is not None:
            state = detach(state)
        output, state = training.model.step((ids,), state=state)
        target = torch.cat([batch.target for batch in several], 1)
        loss = loss + carry * torch.nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())
    (loss / 4).backward()
    assert_close(truncated, gradients(training), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("mechanism", "carry"),
    [
        (XL, 1),
        (COMPRESSIVE, 2),
        (SOFTMAX, 1),
        ({**SOFTMAX, "attention": "nsa", "options": dict(catalog()["nsa"].traits.tiny)}, 1),
        ({"attention": "routing", "causal": True, "options": {"clusters": 2, "window": 8}}, 1),
        ({"attention": "performer", "causal": True, "options": {"redraw_every": 4}}, 2),
    ],
    ids=lambda value: value["attention"] if isinstance(value, dict) else value,
)
def test_an_interrupted_training_with_a_carried_state_ends_like_an_undisturbed_one(
    spec: Fit, data: LanguageData, tmp_path: Path, mechanism: Any, carry: int
):
    asked = changed(spec, mechanism=mechanism, training={"carry": carry, "accumulate": carry})

    def interrupt(phase: str, step: int, loss: float | None) -> None:
        if step == 27:
            raise Interrupted

    def training(name: str, tell: Any) -> Training:
        return Training(asked, data, checkpoint_path=tmp_path / name, tell=tell)

    undisturbed = training("undisturbed", lambda *_: None)
    undisturbed.run()
    with pytest.raises(Interrupted):
        training("kept", interrupt).run()
    torch.manual_seed(1)
    resumed = training("kept", lambda *_: None)
    assert resumed.course.step == 25
    assert resumed.stream is not None
    assert resumed.stream.state is not None
    resumed.run()
    assert resumed.course.curve == undisturbed.course.curve
    assert_close(checkpoint.weights(resumed.model), checkpoint.weights(undisturbed.model), rtol=0, atol=0)
    assert resumed.evaluate("test").scores == undisturbed.evaluate("test").scores


def test_a_checkpoint_with_another_state_is_told_and_training_begins_anew(
    spec: Fit, data: LanguageData, tmp_path: Path
):
    told: list[str] = []
    training = Training(spec, data, checkpoint_path=tmp_path / "kept", tell=lambda *_: None)
    batches = training.batches()
    training.step(batches)
    training.keep()
    groups, numbers = checkpoint.read(tmp_path / "kept") or ({}, {})
    groups["state"].popitem()
    checkpoint.write(tmp_path / "kept", groups, numbers)
    anew = Training(
        spec,
        data,
        checkpoint_path=tmp_path / "kept",
        tell=lambda *_: None,
        note=told.append,
    )
    assert anew.course.step == 0
    assert "state: holds " in told[0]


def test_what_is_redrawn_begins_new_streams(spec: Fit, data: LanguageData, tmp_path: Path):
    drawn = {"attention": "performer", "causal": True, "options": {"redraw_every": 2}}
    asked = changed(spec, mechanism=drawn)
    training = Training(asked, data, checkpoint_path=tmp_path / "kept", tell=lambda *_: None)
    batches, read = training.batches(), []
    for _ in range(5):
        training.step(batches)
        assert training.stream is not None
        assert training.stream.state is not None
        read.append(int(training.stream.state.offset.max()))
    assert read == [16, 32, 16, 32, 16]


@pytest.mark.parametrize("mechanism", [XL, SOFTMAX], ids=lambda mechanism: mechanism["attention"])
def test_a_fit_measures_the_state_and_its_model_reads_new_texts_as_on_test(
    spec: Fit, data: LanguageData, tmp_path: Path, mechanism: Any
):
    asked = changed(spec, mechanism=mechanism, training={"steps": 3})
    fitted = fit(asked, data, checkpoint_path=tmp_path / "kept", tell=lambda *_: None)
    config = fitted.model.config.encoder
    longest = int(np.diff(data.splits["test"].stop, prepend=0).max())
    slots = 19 if mechanism is XL else longest
    assert fitted.measured["state_mb"] * 1e6 >= slots * 2 * config.dim * 4 * config.depth
    export(fitted.model, data, asked, tmp_path / "model")
    model = subquad.load_model(tmp_path / "model")
    answers = model.predict(data.splits["test"].texts)
    bits = (answers["bits per byte"] * answers["bytes"]).to_numpy()
    tested = fitted.result["test"]["bits_per_byte"]
    assert bits.sum() / answers["bytes"].to_numpy().sum() == pytest.approx(tested, rel=1e-5)
    asked = changed(asked, training={"carry": 0})
    alone = fit(asked, data, checkpoint_path=tmp_path / "alone", tell=lambda *_: None)
    assert alone.measured["state_mb"] is None
    assert alone.result["test"]["bits_per_byte"] != tested


def test_a_trial_times_a_fit_whose_state_is_carried(spec: Fit):
    asked = changed(spec, training={"carry": 2, "accumulate": 2})
    times: dict[str, Any] = {**fit_times(asked)}
    assert all(value > 0 for name, value in times.items() if name != "training_peak_mb")


def comparison(folder: Path, **options: Any) -> Comparison:
    defaults: dict[str, Any] = {
        "tasks": (f'language:path="{folder}"',),
        "length": WINDOW,
        "training": TrainingConfig(carry=1),
    }
    return Comparison(**{**defaults, **options})


def test_a_mechanism_that_cannot_stream_says_so_in_its_row_and_the_others_run(folder: Path):
    made = plan(comparison(folder, attention=("all",)))
    (task,) = made.tasks
    streaming = {name for name, cls in catalog().items() if cls.traits.state}
    assert {row.attention for row in task.rows} == streaming - {"cosformer"}
    assert set(task.refusals) == (catalog().keys() - streaming) | {"cosformer"}
    assert task.refusals["poolingformer"] == (
        "'poolingformer' cannot stream, so that there is no state to carry: leave it out, or let each window "
        "stand by itself (carry=0)"
    )
    assert task.refusals["cosformer"].endswith("where a state is carried, a document may be of any length")


def test_masked_bytes_are_asked_of_causal_forms_where_a_state_is_carried(folder: Path):
    made = plan(comparison(folder, target="masked", attention=("transformer-xl", "linear")))
    assert [fit.mechanism.causal for fit in made.fits] == [True, True]


def test_what_cannot_carry_is_refused_in_one_line(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="carry=4 lets gradients flow through 4 windows of a step, and"):
        TrainingConfig(carry=4, accumulate=2)
    with pytest.raises(ValueError, match="carry must be at least 0, not -1"):
        TrainingConfig(carry=-1)
    with pytest.raises(ValueError, match="learnt positions end with them: take positions 'none', 'sinusoida"):
        comparison(folder, model=ModelConfig(positions="learnt"))
    own = f'custom:schema="{write(tmp_path)}"'
    with pytest.raises(ValueError, match="custom: its sequences are whole, and there is no document along"):
        plan(comparison(folder, tasks=(own,), attention=("linear",)))
    with pytest.raises(ValueError, match="its sequences are whole"):
        tasks.load("custom", schema=str(tmp_path / "schema.toml")).streams(
            "train", size=1, seed=0, epoch=0, shuffle=False
        )


def test_a_run_without_carry_has_the_name_that_it_had_before_there_was_any(spec: Fit):
    def key(made: Fit) -> str:
        fields = asdict(made)
        for later in ("carry", "devices"):
            fields["training"].pop(later)
        fields["data"].pop("options")
        return records.key(made.kind, made.version, fields)

    alone = changed(spec, training={"carry": 0})
    assert alone.key == key(alone)
    assert spec.key != key(spec)
    document = spec.to_json()
    assert Fit.from_json(document) == spec
    document["training"].pop("carry")
    assert Fit.from_json(document) == alone


@pytest.mark.parametrize("name", sorted(n for n, cls in catalog().items() if cls.traits.state == "bounded"))
def test_the_state_of_a_stream_of_64_000_tokens_is_as_large_as_that_of_none(name: str):
    if name == "cosformer":
        pytest.skip("it has a greatest length")
    chosen = LONG.get(name, catalog()[name].traits.tiny)
    config = EncoderConfig(dim=4, depth=1, heads=1, attention=name, options=chosen, causal=True)
    encoder = Encoder(config).eval()
    chunk = torch.randn(1, 2000, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        state = encoder.initial_state(1)
        for _ in range(64_000 // chunk.shape[1]):
            output, state = encoder.step(chunk, state=state)
            assert output.isfinite().all()
    assert int(state.offset) == 64_000
    before = encoder.initial_state(1)
    assert [leaf.shape for leaf in leaves(state)] == [leaf.shape for leaf in leaves(before)]
