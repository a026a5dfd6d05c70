"""Texts from a folder with a trained model: from Python, and by `subquad generate`, as they come."""

import json
import sys
from itertools import cycle, islice
from pathlib import Path

import pytest
from experiments_sample import QUICK, changed
from own_sample import write
from usage import assert_refused

import subquad
from subquad import SamplingConfig, tasks
from subquad.cli.generate import print_piece
from subquad.experiments.language import LanguageModel
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export
from subquad.experiments.training import Training
from subquad.nn import Decoder
from subquad.tasks import DataError

VERSE = "été, hiver; "
LENGTH = 48
GREEDY = SamplingConfig(temperature=0)


def spec_of(data, folder, *, attention="gated-delta", causal=True, positions="none"):
    return changed(
        QUICK,
        data={
            "task": "language",
            "target": data.target,
            "options": {"path": str(folder)},
            "fingerprint": data.fingerprint,
            "length": LENGTH,
        },
        mechanism={"attention": attention, "causal": causal},
        model={"dim": 32, "positions": positions, "dropout": 0.0},
        training={"steps": 100},
    )


@pytest.fixture(scope="module")
def verses(tmp_path_factory) -> Path:
    """Documents that begin alike and go on alike."""
    folder = tmp_path_factory.mktemp("verses")
    for place in range(40):
        (folder / f"{place}.txt").write_text(VERSE * (4 + place % 5), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(verses, tmp_path_factory) -> Path:
    """The folder of a model that has learnt the verse."""
    folder = tmp_path_factory.mktemp("trained")
    data = tasks.load("language", path=str(verses), length=LENGTH)
    spec = spec_of(data, verses)
    training = Training(spec, data, checkpoint_path=folder / "checkpoint", tell=lambda *_: None)
    training.run()
    export(training.model, data, spec, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(trained) -> LanguageModel:
    loaded = subquad.load_model(trained)
    assert isinstance(loaded, LanguageModel)
    return loaded


def untrained(verses, folder, *, target="next", **chosen) -> Path:
    data = tasks.load("language", path=str(verses), length=LENGTH, target=target)
    spec = spec_of(data, verses, causal=data.objective.causal, **chosen)
    export(build_model(spec, data), data, spec, folder)
    return folder


@pytest.fixture
def call(command_line):
    return command_line


def goes_on(prompt: str, count: int) -> str:
    """The verse, behind a prompt that is a piece of it, for so many bytes."""
    at = (VERSE * 9).encode().index(prompt.encode()) + len(prompt.encode())
    return bytes(islice(cycle(VERSE.encode()), at, at + count)).decode("utf-8", "replace")


@pytest.mark.parametrize("prompt", ["", "ét", "hiver; été, hi", VERSE * 6])
def test_a_trained_model_goes_on_from_a_prompt_and_from_none(model, prompt):
    assert model.generate([prompt], tokens=70, sampling=GREEDY) == [goes_on(prompt, 70)]


def test_prompts_of_unequal_length_are_gone_on_with_together(model):
    prompts = ["", "hiver", VERSE * 3 + "é"]
    assert model.generate(prompts, tokens=30, sampling=GREEDY) == [goes_on(each, 30) for each in prompts]


def test_pieces_are_whole_characters_and_joined_the_text(model):
    stream = model.stream(["h"], tokens=40, sampling=GREEDY)
    pieces = [piece for (piece,) in stream]
    assert "".join(pieces) == goes_on("h", 40)
    assert all(len(piece) <= 1 for piece in pieces)
    assert "é" in pieces
    assert stream.lengths == [40]


def test_bytes_that_form_no_character_are_replaced_at_the_end_too(model):
    assert model.generate(["hiver; "], tokens=1, sampling=GREEDY) == ["\ufffd"]
    (((text, tokens, _),),) = model.search(["hiver; "], tokens=1, beams=1)
    assert (text, tokens) == ("\ufffd", 1)


def test_a_stop_is_a_text_and_ends_one(model):
    assert model.generate(["hi"], tokens=70, sampling=GREEDY, stop=["été", "zz"]) == ["ver; été"]
    assert model.generate(["", "hi"], tokens=70, sampling=GREEDY, stop=[";"]) == ["été, hiver;", "ver;"]


def test_the_likeliest_text_is_found_by_search(model):
    (best,) = model.search(["été"], tokens=9, beams=3)
    assert best[0].text == ", hiver; "
    assert [way.score for way in best] == sorted((way.score for way in best), reverse=True)


def test_samples_of_a_prompt_differ_and_seeds_repeat_them(model):
    hot = SamplingConfig(temperature=3, seed=1)
    first = model.generate(["é"], tokens=20, sampling=hot, samples=4)
    assert len({*first}) == 4
    assert model.generate(["é"], tokens=20, sampling=hot, samples=4) == first


def test_a_model_of_masked_bytes_does_not_generate(verses, tmp_path, call):
    folder = untrained(verses, tmp_path / "model", target="masked", attention="linear")
    loaded = subquad.load_model(folder)
    assert isinstance(loaded, LanguageModel)
    for form in (loaded.generate, loaded.stream):
        with pytest.raises(
            DataError, match="cannot go on from a text: take one that was trained with target=n"
        ):
            form(tokens=3)
    status, out, err = call("generate", folder)
    assert (status, out) == (2, "")
    assert "trained with target=next" in err


def test_generate_prints_the_text_and_how_fast_it_came(call, trained):
    status, out, err = call("generate", trained, "--prompt", "ét", "--tokens", "30", "--temperature", "0")
    assert (status, out) == (0, f"{goes_on('ét', 30)}\n")
    assert "30 tokens in " in err
    assert "tokens per second; state " in err


def test_generate_reads_a_prompt_from_a_file(call, trained, tmp_path):
    (tmp_path / "a.txt").write_bytes("été, hiver; é".encode()[:-1])  # in the midst of a character
    status, out, _ = call(
        "generate", trained, "--prompt-file", tmp_path / "a.txt", "--tokens", 9, "--temperature", 0
    )
    assert (status, out) == (0, "\ufffdté, hiv\n")


def test_several_samples_are_printed_one_after_the_other(call, trained):
    status, out, _ = call("generate", trained, "--samples", 2, "--tokens", 12, "--top-k", 1)
    assert (status, out) == (0, f"--- 1 of 2\n{goes_on('', 12)}\n\n--- 2 of 2\n{goes_on('', 12)}\n")


def test_generate_as_json_holds_all_texts_and_figures(call, trained, model):
    arguments = ["--samples", 2, "--tokens", 15, "--stop", ",", "--temperature", 2, "--seed", 5, "--json"]
    status, out, _ = call("generate", trained, "--prompt", "é", *arguments)
    document = json.loads(out)
    texts = model.generate(
        ["é"], tokens=15, stop=[","], samples=2, sampling=SamplingConfig(temperature=2, seed=5)
    )
    assert status == 0
    assert [one["text"] for one in document["texts"]] == texts
    assert document["tokens_per_second"] > 0
    assert document["state_bytes"] > 0
    status, out, _ = call("generate", trained, "--prompt", "hi", "--beams", 3, "--tokens", 4, "--json")
    assert status == 0
    assert json.loads(out)["texts"][0]["text"] == "ver;"
    assert call("generate", trained, "--prompt", "hi", "--beams", 3, "--tokens", 4)[1] == "ver;\n"


def test_ctrl_c_ends_with_what_was_written(call, trained, monkeypatch):
    steps = iter(range(5))

    def interrupted(decoder):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return advance(decoder)

    advance = Decoder.__next__
    monkeypatch.setattr(Decoder, "__next__", interrupted)
    status, out, err = call("generate", trained, "--prompt", "été", "--tokens", "30", "--temperature", "0")
    assert (status, out) == (130, ", hiv\n")
    assert err.splitlines()[-1].startswith("interrupted after 5 tokens in ")


def test_a_terminal_is_not_told_to_obey_what_a_model_writes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_piece("a\x1b[2Jb\r\n\tc\x9b")
    assert capsys.readouterr().out == "a\ufffd[2Jb\n\tc\ufffd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere"),
        ("MODEL --prompt a --prompt-file b", "give --prompt 'a' or --prompt-file 'b', not both"),
        ("MODEL --prompt-file no.txt", "no.txt"),
        ("MODEL --beams 2 --samples 2", "a beam search draws nothing: leave out --beams, or --samples"),
        ("MODEL --beams 2 --temperature 0", "a beam search draws nothing"),
        ("MODEL --alpha 1", "--alpha 1 is of a beam search: give --beams too"),
        ("MODEL --temperature=-1", "temperature must be zero or a positive number, not -1.0"),
        ("MODEL --top-p 0", "top_p must be above 0 and at most 1, not 0.0"),
        ("MODEL --repetition-penalty 0", "repetition_penalty must be a positive number, not 0.0"),
        ("MODEL --device cuda:7", "no device 'cuda:7' here"),
    ],
)
def test_bad_usage_of_generate_is_one_line(call, trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_refused(call, tmp_path, f"generate {arguments.replace('MODEL', str(trained))}", message)


def test_a_model_that_is_not_of_texts_is_refused(call, tmp_path):
    schema = write(tmp_path / "own")
    data = tasks.load("custom", schema=str(schema))
    spec = changed(QUICK, data={"target": data.target, "options": {"schema": str(schema)}})
    export(build_model(spec, data), data, spec, tmp_path / "model")
    status, out, err = call("generate", tmp_path / "model")
    assert (status, out) == (2, "")
    assert "holds a model of the task 'custom', and one of texts generates: train it with" in err


def test_a_mechanism_without_a_stream_is_refused(call, verses, tmp_path):
    status, out, err = call("generate", untrained(verses, tmp_path / "model", attention="poolingformer"))
    assert (status, out) == (2, "")
    assert "'poolingformer' cannot generate, since it has no stream to go on with: take a mechanism" in err
