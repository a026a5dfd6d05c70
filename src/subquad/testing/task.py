"""The contract of a task as checks, for our own and for anyone's.

With pytest:

    from subquad.testing.task import Case, contract

    @pytest.fixture(scope="module")
    def case():
        return Case(MyTask(), "target")

    @pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
    def test_contract(check, case):
        check(case)

or from the shell, `subquad check my_package:MyTask`, which prints a certificate.
"""

import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b
from itertools import product
from typing import Any

import numpy as np
import torch

from subquad.fields import IGNORED, SPLITS, Batch, Split, Tokens, token_fields
from subquad.task import Dataset, SupervisedData, Task
from subquad.testing.certificate import Outcome, outcome

SIZE = 32  # examples at a time
SAMPLED = 16  # batches, where all would take long
ERRORS = 4  # standard errors by which a baseline may lie below chance


class Case:
    """A task with one of its targets, loaded once."""

    def __init__(self, task: Task, target: str | None) -> None:
        self.task, self.target = task, target

    @cached_property
    def data(self) -> Dataset:
        return self.load()

    def load(self) -> Dataset:
        return self.task.load(target=self.target, length=None)

    def batches(self, split: Split, *, size: int = SIZE, **options: Any) -> Iterator[Batch]:
        order = {"length": self.data.longest, "seed": 0, "epoch": 0, "shuffle": False, **options}
        return self.data.batches(split, size=size, **order)


Check = Callable[[Case], None]


def contract() -> tuple[Check, ...]:
    """The checks of every task, cheapest knowledge first. Each raises `AssertionError`."""
    return (
        check_it_says_what_it_is,
        check_every_example_once,
        check_labels_in_range,
        check_padding_is_no_symbol,
        check_length_is_a_bound,
        check_order_goes_by_seed_and_epoch,
        check_streams_read_documents_in_order,
        check_splits_are_disjoint,
        check_loading_again_gives_the_same,
        check_baselines_are_between_chance_and_one,
        check_its_oracle_solves_it,
        check_kinds_fit_the_answers,
        check_new_inputs_are_read_alike,
    )


def certify(task: Task) -> Iterator[Outcome]:
    """Run every check on every target, one after the other, whatever fails."""
    for target in task.traits.targets or (None,):
        case = Case(task, target)
        for check in contract():
            yield outcome(check, case)


def check_it_says_what_it_is(case: Case) -> None:
    """It says its name, unit, length, source and sizes, and its summary is JSON with all splits."""
    traits = case.task.traits
    for name in ("name", "description", "unit", "source"):
        assert getattr(traits, name), f"traits.{name} is empty"
    assert traits.length >= 1, f"traits.length is {traits.length}"
    for size, chosen in traits.sizes.items():
        unknown = chosen.keys() - inspect.signature(type(case.task)).parameters.keys()
        assert not unknown, f"traits.sizes[{size!r}] has options that the task has not: {sorted(unknown)}"
    assert json.loads(json.dumps(case.data.summary)) == case.data.summary, "the summary is not JSON"
    assert set(case.data.summary.get("splits", ())) == set(SPLITS), "summary['splits'] should have all splits"


def check_every_example_once(case: Case) -> None:
    """Every example of a split comes once an epoch, whatever the batch size, with its own answer."""
    for split in SPLITS:
        count = case.data.count(split)
        assert count, f"{split} has no example"
        assert len(case.data.group(split)) == count, f"{split}: groups and examples differ in number"
        for shuffle, size in ((True, 7), (False, SIZE)):
            batches = list(case.batches(split, size=size, shuffle=shuffle))
            place = torch.cat([batch.example for batch in batches])
            assert place.sort().values.tolist() == list(range(count)), f"{split}: not every example once"
            if isinstance(case.data, SupervisedData):
                check_answers(case.data, split, batches)


def check_answers(data: SupervisedData, split: Split, batches: Sequence[Batch]) -> None:
    """The targets are those of their examples."""
    for batch in batches:
        expected = data.objective.encode(data.truth(split)[batch.example.numpy()])
        answered, every = (data.objective.asked(each, each) for each in (batch.target, expected))
        assert torch.equal(answered, every), f"{split}: targets that are not those of their examples"


def check_labels_in_range(case: Case) -> None:
    """Answers are classes or finite numbers, train has every class, and ids are of the vocabulary."""
    data = case.data
    readout = data.objective.readout
    if isinstance(data, SupervisedData):
        check_truth_in_range(data)
    for split in SPLITS:
        for batch in sampled(case.batches(split)):
            for column, known in categorical(data, batch):
                real = column[batch.valid]
                assert ((real >= 0) & (real < known)).all(), f"{split}: ids beyond a vocabulary of {known}"
            for part in batch.inputs:
                assert part[batch.valid].isfinite().all(), f"{split}: inputs that are not finite"
            shape = batch.valid.shape if readout.per == "token" else batch.valid.shape[:1]
            loss = data.objective.loss(torch.zeros(*shape, readout.outputs), batch)
            assert loss.isfinite(), f"{split}: the loss of outputs of zero is {loss.item()}"


def check_truth_in_range(data: SupervisedData) -> None:
    classes = len(data.objective.classes)
    for split in SPLITS:
        truth = data.truth(split)
        assert np.isfinite(truth).all(), f"{split}: answers that are not finite"
        if classes:
            asked = truth[truth != IGNORED]
            assert ((asked >= 0) & (asked < classes)).all(), f"{split}: answers beyond {classes} classes"
    if classes:
        absent = set(range(classes)) - set(np.unique(data.truth("train")).tolist())
        assert not absent, f"train has no example of the classes {sorted(absent)}"


def check_padding_is_no_symbol(case: Case) -> None:
    """A sequence alone has no padding, and among others the same tokens with padding behind them.

    Of a pair that is alone, one side has no padding.
    """
    for split in SPLITS:
        alone = {}
        for batch in sampled(case.batches(split, size=1)):
            whole = batch.valid.all(-1).any()
            assert whole, f"{split}: a sequence alone has padding: is a symbol taken for it?"
            alone[batch.example.item()] = sequences(batch, 0)
        for batch in sampled(case.batches(split)):
            assert (batch.valid.int().diff(dim=-1) <= 0).all(), f"{split}: tokens after padding"
            for row, place in enumerate(batch.example.tolist()):
                ours = sequences(batch, row)
                for side, own in zip(ours, alone.get(place, ours), strict=True):
                    same = all(torch.equal(a, b) for a, b in zip(side, own, strict=True))
                    assert same, f"{split}: example {place} is another among others"


def check_length_is_a_bound(case: Case) -> None:
    """No batch is longer than it may be, and all is whole at the length of the longest."""
    short = max(1, case.data.longest // 2)
    for split in SPLITS:
        longest = max(batch.valid.shape[-1] for batch in sampled(case.batches(split, length=short)))
        assert longest <= short, f"{split}: {longest} tokens where {short} may be"
        more = next(case.batches(split, length=2 * case.data.longest)).valid
        assert torch.equal(more, next(case.batches(split)).valid), f"{split}: `longest` is not the longest"


def check_order_goes_by_seed_and_epoch(case: Case) -> None:
    """The order of training depends on seed and epoch and on nothing else."""

    def order(**options: int) -> list[int]:
        batches = case.batches("train", shuffle=True, **options)
        return torch.cat([batch.example for batch in batches]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2), "the same seed and epoch give another order"
    if case.data.count("train") > 8:
        assert order(seed=1, epoch=2) != order(seed=1, epoch=3), "another epoch has the same order"
        assert order(seed=1, epoch=2) != order(seed=2, epoch=2), "another seed has the same order"


def check_streams_read_documents_in_order(case: Case) -> None:
    """Where examples are windows of documents, streams have each once, behind the one before it."""
    data = case.data
    if not data.windowed:
        return
    for split, shuffle in product(SPLITS, (True, False)):
        batches = list(data.streams(split, size=7, seed=0, epoch=0, shuffle=shuffle))
        group, every = data.group(split), torch.cat([batch.example for batch in batches])
        assert every[every >= 0].sort().values.tolist() == list(range(data.count(split))), (
            f"{split}: streams have not every example once"
        )
        ends: dict[int, tuple[int, int] | None] = {}  # of a row: its document, and the tokens read of it
        for batch in batches:
            assert batch.offset is not None, f"{split}: a window does not say where it begins"
            assert batch.begins is not None, f"{split}: a batch does not say which streams begin"
            assert torch.equal(batch.valid.any(1), batch.example >= 0), f"{split}: an example without a token"
            places = (batch.example, batch.offset, batch.begins, batch.valid.sum(1))
            for row, (place, offset, new, tokens) in enumerate(
                zip(*(x.tolist() for x in places), strict=True)
            ):
                if place < 0:
                    ends[row] = None
                    continue
                document = int(group[place])
                assert shuffle or new == (offset == 0), f"{split}: a document is not read as a whole"
                assert new or ends.get(row) == (document, offset), f"{split}: a stream has a gap"
                ends[row] = document, offset + tokens


def check_splits_are_disjoint(case: Case) -> None:
    """No example of one split stands in another; no document, where examples are pieces of some."""
    seen: dict[bytes, Split] = {}
    for split in SPLITS:
        for mark in marks(case, split):
            assert seen.setdefault(mark, split) == split, f"a sequence of {seen[mark]} stands in {split} too"


def check_loading_again_gives_the_same(case: Case) -> None:
    """Loaded again it has the same fingerprint, sequences and answers."""
    again = Case(case.task, case.target)
    assert again.data.fingerprint == case.data.fingerprint, "another fingerprint"
    for split in SPLITS:
        if isinstance(case.data, SupervisedData) and isinstance(again.data, SupervisedData):
            assert np.array_equal(again.data.truth(split), case.data.truth(split)), f"{split}: other answers"
        pairs = zip(sampled(again.batches(split)), sampled(case.batches(split)), strict=True)
        for one, other in pairs:
            same = all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
            assert same, f"{split}: other sequences under the same fingerprint"
            assert torch.equal(one.target, other.target), f"{split}: other targets under the same fingerprint"


def check_baselines_are_between_chance_and_one(case: Case) -> None:
    """Its baselines are finite, and none is below chance or perfect."""
    data, objective, chance = case.data, case.data.objective, case.data.objective.chance
    assert data.baselines(), "there is no baseline"
    values = {}
    for baseline in data.baselines():
        output = data.baseline(baseline.name, length=data.longest, seed=0)
        value = values[baseline.name] = data.judged(output).scores[objective.metric]
        assert np.isfinite(value), f"{baseline.name} scores {value}"
        if chance is not None and objective.higher_is_better:
            low = chance - ERRORS * (chance * (1 - chance) / data.count("test")) ** 0.5
            assert low <= value < 1, f"{baseline.name} scores {value}, and chance is {chance}"
    if (
        chance is not None and not objective.higher_is_better
    ):  # all but one may be below: headers of files cost
        assert 0 < min(values.values()) <= chance, f"baselines score {values}, and chance is {chance}"


def check_its_oracle_solves_it(case: Case) -> None:
    """The oracle, if there is one, answers every example right."""
    for split in SPLITS:
        scorer = case.data.objective.scorer()
        for batch in case.batches(split):
            if (output := case.data.oracle(batch)) is None:
                return
            scorer.add(output, batch)
        value = scorer.result().scores[case.data.objective.metric]
        best = 1.0 if case.data.objective.higher_is_better else 0.0
        assert abs(value - best) < 1e-6, f"{split}: the oracle scores {value}"


def check_kinds_fit_the_answers(case: Case) -> None:
    """Whatever kinds of answers it names, every answer is of one of them."""
    data = case.data
    if not isinstance(data, SupervisedData):
        return
    for split in SPLITS:
        shape = data.truth(split).shape
        for title, (names, of) in data.kinds(split).items():
            where = f"{split}: kinds by {title!r}"
            assert of.shape == shape, f"{where} are of shape {of.shape}, and answers of shape {shape}"
            assert len(set(names)) == len(names), f"{where} have one name twice in {list(names)}"
            inside = (of >= 0) & (of < len(names))
            assert inside.all(), f"{where} have {int((~inside).sum())} answers of none of the {len(names)}"


def check_new_inputs_are_read_alike(case: Case) -> None:
    """What reads new inputs for a trained model makes the fields of the data, and is JSON."""
    encoding = case.data.encoding
    if encoding is None:
        return
    declared = case.task.encoding or ()
    assert isinstance(encoding, declared), f"{type(case.task).__name__}.encoding is of another type"
    assert encoding.fields == case.data.fields, "the encoding makes other fields than the data have"
    json.dumps(asdict(encoding), allow_nan=False)


def sampled(batches: Iterator[Batch]) -> Iterator[Batch]:
    return (batch for _, batch in zip(range(SAMPLED), batches, strict=False))


def categorical(data: Dataset, batch: Batch) -> list[tuple[torch.Tensor, int]]:
    """Each column of ids, and how many there are."""
    fields = token_fields(data.fields)
    if isinstance(fields, Tokens):
        return [(batch.inputs[0], fields.vocabulary)]
    return list(zip(batch.inputs[0].unbind(-1), fields.vocabularies, strict=True))


def sequences(batch: Batch, row: int) -> list[list[torch.Tensor]]:
    """The real tokens of an example's sequence, or of a pair's two, input by input."""
    sides = batch.valid[row].reshape(-1, batch.valid.shape[-1])
    parts = [part[row].reshape(*sides.shape, *part.shape[batch.valid.ndim :]) for part in batch.inputs]
    return [[part[side][real] for part in parts] for side, real in enumerate(sides)]


def marks(case: Case, split: Split) -> Iterator[bytes]:
    """What tells each example, or each document, from others."""
    group = case.data.group(split)
    pieces: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for batch in case.batches(split):
        for row in range(len(batch.valid)):
            whole = b"".join(sorted(mark_of(side) for side in sequences(batch, row)))
            if batch.offset is None:
                yield whole
            else:
                owner = int(group[int(batch.example[row])])
                pieces[owner].append((int(batch.offset[row]), whole))
    for parts in pieces.values():
        yield b"".join(part for _, part in sorted(parts))


def mark_of(sequence: list[torch.Tensor]) -> bytes:
    total = blake2b(digest_size=16)
    for part in sequence:
        total.update(part.numpy().tobytes())
    return total.digest()
