"""The contract of tasks: ours keep it, and each check sees the fault that it is for."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from own_sample import write
from pairs_sample import Anagrams

from subquad.task import Baseline
from subquad.tasks.custom import Custom
from subquad.tasks.listops import ListOps
from subquad.tasks.sequences import SequenceData
from subquad.testing import task as checks
from subquad.testing.task import Case, certify, contract

SMALL = {"train": 300, "validation": 40, "test": 40, "above": 5, "below": 60, "depth": 4}


@pytest.fixture(scope="module")
def listops():
    return Case(ListOps(**SMALL), "value")


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    return Case(Custom(schema=str(write(tmp_path_factory.mktemp("own")))), None)


@pytest.fixture(scope="module")
def anagrams():
    return Case(Anagrams(), "anagram")


@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["listops", "custom", "anagrams"])
def test_our_tasks_keep_the_contract(name, check, request):
    check(request.getfixturevalue(name))


def test_a_certificate_has_a_line_for_each_check():
    outcomes = list(certify(ListOps(**SMALL)))
    assert [outcome.check for outcome in outcomes] == [
        check.__name__.removeprefix("check_") for check in contract()
    ]
    assert all(outcome.passed for outcome in outcomes)


class DropsLast(SequenceData):
    def batches(self, split, *, size, **options):
        for batch in super().batches(split, size=size, **options):
            if len(batch.example) == size:
                yield batch


class TakesZeroForPadding(SequenceData):
    def batches(self, split, **options):
        for batch in super().batches(split, **options):
            yield batch._replace(valid=batch.valid & (batch.inputs[0] > 0))


class ReadsOn(SequenceData):
    def batches(self, split, *, length, **options):
        yield from super().batches(split, length=length + 1, **options)


class AlwaysShufflesAlike(SequenceData):
    def batches(self, split, *, seed, epoch, **options):
        yield from super().batches(split, seed=0, epoch=0, **options)


class ShufflesAnyhow(SequenceData):
    def batches(self, split, *, seed, **options):
        seed = int(torch.randint(10**6, ()))
        yield from super().batches(split, seed=seed, **options)


class HasAPerfectBaseline(SequenceData):
    def baselines(self):
        return (Baseline("perfect", seeded=False),)

    def baseline(self, name, *, length, seed):
        return np.eye(10)[self.truth("test")]


class IsAnotherEachTime(SequenceData):
    @cached_property
    def fingerprint(self):
        return str(torch.rand(()))


def overlapping(data):
    return {**data.splits, "test": data.splits["train"].take(slice(0, 40))}


def mislabelled(data):
    test = data.splits["test"]
    classes = len(data.objective.classes)
    return {**data.splits, "test": replace(test, answer=(test.answer + 1) % classes)}


def beyond(data):
    test = data.splits["test"]
    return {**data.splits, "test": replace(test, answer=test.answer + 10)}


def faulty(task, change):
    """The task, with its data changed."""

    class Faulty(task):
        def load(self, *, target=None, length=None):
            data = super().load(target=target, length=length)
            if isinstance(change, type):
                return change(**{name: getattr(data, name) for name in SequenceData.__dataclass_fields__})
            return replace(data, splits=change(data))

    return Faulty


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (DropsLast, checks.check_every_example_once, "not every example once"),
        (TakesZeroForPadding, checks.check_padding_is_no_symbol, "a sequence alone has padding"),
        (ReadsOn, checks.check_length_is_a_bound, "tokens where"),
        (AlwaysShufflesAlike, checks.check_order_goes_by_seed_and_epoch, "another epoch has the same order"),
        (ShufflesAnyhow, checks.check_order_goes_by_seed_and_epoch, "give another order"),
        (HasAPerfectBaseline, checks.check_baselines_are_between_chance_and_one, "perfect scores 1.0"),
        (IsAnotherEachTime, checks.check_loading_again_gives_the_same, "another fingerprint"),
        (overlapping, checks.check_splits_are_disjoint, "a sequence of train stands in test too"),
        (mislabelled, checks.check_its_oracle_solves_it, "test: the oracle scores 0"),
        (beyond, checks.check_labels_in_range, "test: answers beyond 10 classes"),
    ],
)
def test_a_check_sees_the_fault_that_it_is_for(listops, change, check, said):
    with pytest.raises(AssertionError, match=said):
        check(Case(faulty(ListOps, change)(**SMALL), "value"))


def test_pairs_are_not_taken_for_sequences_nor_sequences_for_pairs(anagrams, listops):
    with pytest.raises(ValueError, match=r"examples of train are pairs, and fields is Tokens"):
        replace(anagrams.data, fields=listops.data.fields)
    with pytest.raises(ValueError, match=r"examples of train are sequences, and fields is Pair"):
        replace(listops.data, fields=anagrams.data.fields)


def test_random_inputs_are_of_the_shape_of_the_data(anagrams):
    random, own = anagrams.data.synthetic(size=4, length=7), next(anagrams.batches("test", size=4, length=7))
    assert random.valid.shape == (*own.valid.shape[:2], 7)
    assert [part.ndim for part in random.inputs] == [part.ndim for part in own.inputs]
    assert len(random.example) == len(random.target) == len(random.valid) == 4


def swapped(data):
    """A pair of training, in test with its sides the other way round."""
    train, test = data.splits["train"], data.splits["test"]
    both = np.concatenate([train.symbols, test.symbols])
    stop = np.concatenate([train.stop, test.stop + len(train.symbols)])
    pair = np.concatenate([train.pair[:1, ::-1], test.pair[1:] + len(train.stop)])
    return {**data.splits, "test": replace(test, symbols=both, stop=stop, pair=pair)}


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (DropsLast, checks.check_every_example_once, "not every example once"),
        (TakesZeroForPadding, checks.check_padding_is_no_symbol, "has padding|another among others"),
        (ReadsOn, checks.check_length_is_a_bound, "tokens where"),
        (swapped, checks.check_splits_are_disjoint, "a sequence of train stands in test too"),
        (mislabelled, checks.check_its_oracle_solves_it, "test: the oracle scores 0"),
    ],
)
def test_a_check_sees_the_fault_that_it_is_for_in_pairs(change, check, said):
    with pytest.raises(AssertionError, match=said):
        check(Case(faulty(Anagrams, change)(), "anagram"))
