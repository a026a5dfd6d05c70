import re
from typing import Any

import pytest
import report_samples as made_up

from subquad.records import Record
from subquad.report.answer import Answer


def told(setting: dict[str, Any], records: list[Record]) -> Answer:
    return made_up.findings(setting, records).answer


def sampled(setting: dict[str, Any] | None = None, **options: Any) -> Answer:
    setting = setting or made_up.comparison()
    return told(setting, made_up.sample(setting, **options))


def test_a_mechanism_better_than_all_others_is_taken() -> None:
    found = sampled(quality={"linear": 0.75})
    assert (found.verdict, found.label) == ("take", "linear")
    assert (
        "better than softmax, performer:features=64 and infinity on the same examples and seeds"
        in found.sentence
    )


def test_of_mechanisms_that_cannot_be_told_apart_the_fastest_is_taken() -> None:
    found = sampled(quality={"linear": 0.7039, "softmax": 0.704, "performer": 0.6})
    assert found.label == "linear"
    assert "told apart" in found.sentence
    assert "fastest" in found.sentence


def test_on_several_machines_speed_decides_nothing() -> None:
    setting = made_up.comparison()
    records = made_up.sample(setting, quality={"linear": 0.70, "softmax": 0.7005})
    for record in records:
        if record["spec"].get("mechanism", {}).get("attention") == "linear":
            record["machine"] = {**made_up.MACHINE, "fingerprint": "another"}
    found = told(setting, records)
    assert "fastest" not in found.sentence
    assert any("different machines" in reason for reason in found.reasons)


def test_one_seed_gives_a_lead_and_claims_nothing() -> None:
    found = sampled(made_up.comparison(seeds=1))
    assert found.verdict == "lead"
    assert "one seed cannot tell a difference from chance" in found.sentence
    assert "better than" not in found.sentence


def test_a_lead_that_does_not_show_is_shared() -> None:
    setting = made_up.comparison(made_up.ROWS[:2], seeds=1)
    records = [made_up.fit(row, 0, setting, score=0.7) for row in made_up.ROWS[:2]]
    assert told(setting, records).sentence.startswith("softmax and linear have the best AUC, 0.700; but")


def test_with_one_length_no_range_of_lengths_is_claimed() -> None:
    setting = made_up.comparison(lengths=[8192])
    assert "linear is faster than fused softmax at 8,192 tokens, in training." in sampled(setting).reasons


def test_costs_that_were_not_measured_are_left_out_of_the_reasons() -> None:
    setting = made_up.comparison(lengths=[])
    records = made_up.sample(setting, quality={"linear": 0.75})
    for record in records:
        if record["kind"] == "fit" and record["status"] == "ok":
            for name in ("train_units_per_second", "latency_ms", "training_peak_mb"):
                record["measured"][name] = None
    reasons = " ".join(told(setting, records).reasons)
    assert "Between linear and softmax, 988 test examples and 3 seeds tell differences above" in reasons
    assert not re.search("as fast|its time|its memory|fused", reasons)


def test_under_the_baseline_none_is_taken() -> None:
    found = sampled(baselines={"majority": 0.5, "boosting": 0.8})
    assert (found.verdict, found.label) == ("baseline", None)
    assert "no mechanism clears the baseline. Gradient boosting reaches AUC 0.800" in found.sentence


@pytest.mark.parametrize("seeds", [1, 3])
def test_beside_the_baseline_by_less_than_can_be_told_there_is_no_answer(seeds: int) -> None:
    found = sampled(made_up.comparison(made_up.ROWS[:2], seeds=seeds), baselines={"boosting": 0.705})
    assert (found.verdict, found.label) == ("open", None)
    assert "cannot be told whether any mechanism clears the baseline" in found.sentence
    assert "988" in found.sentence
    assert "differences above about 0.0" in found.sentence


def test_one_seed_under_the_baseline_for_certain_says_that_other_seeds_may_do_better() -> None:
    found = sampled(made_up.comparison(seeds=1), baselines={"boosting": 0.8})
    assert found.verdict == "baseline"
    assert "the test set of 988 examples tells them apart" in found.sentence
    assert any("nothing of other seeds" in reason for reason in found.reasons)


def test_a_lead_says_which_differences_the_test_set_tells() -> None:
    """Issue: AUC 0.961 against 0.971 on 238 rows, where the standard error is 0.020."""
    found = sampled(made_up.comparison(made_up.ROWS[:2], seeds=1), quality={"softmax": 0.705})
    assert re.search(
        r"the test set of 988 examples tells differences above about 0\.00\d+ apart", found.sentence
    )
    assert "these two cannot be told apart" in found.sentence


def test_rows_that_answer_every_example_alike_are_said_to() -> None:
    setting = made_up.comparison(made_up.ROWS[:2], seeds=1)
    records = made_up.sample(setting, baselines={"majority": 0.5})
    first, second = (record for record in records if record["kind"] == "fit")
    second["result"] = first["result"]
    found = told(setting, records)
    assert "they answer the test examples alike, so that these two cannot be told apart" in found.sentence


def test_records_that_keep_no_examples_are_judged_by_seeds_and_it_says_so() -> None:
    setting = made_up.comparison()
    found = told(setting, made_up.older(made_up.sample(setting, quality={"linear": 0.75})))
    assert (found.verdict, found.label) == ("take", "linear")
    assert any("no scores of single examples" in reason for reason in found.reasons)
    setting = made_up.comparison(seeds=1)
    found = told(setting, made_up.older(made_up.sample(setting)))
    assert found.verdict == "open"
    assert "one seed cannot tell a difference from chance" in found.sentence


def test_a_training_that_ended_at_its_best_was_cut_short_and_what_to_do_is_said() -> None:
    setting = made_up.comparison(made_up.ROWS[:2])
    records = made_up.sample(setting)
    for place, record in enumerate(record for record in records if record["kind"] == "fit"):
        last = record["result"]["curve"][-1]["step"]
        record["result"]["best_step"] = last if place < 2 else 200
    (reason,) = [reason for reason in told(setting, records).reasons if "cut short" in reason]
    assert reason.startswith("2 of 6 fits were at the best in the last step, after 0.63 of an epoch")
    assert "more than 400 steps" in reason


def test_many_rows_have_no_more_reasons_than_few() -> None:
    rows = [made_up.row("softmax"), *(made_up.row("linear", size=size) for size in range(11))]
    setting = made_up.comparison(rows)
    found = told(setting, made_up.sample(setting, quality={"softmax": 0.8}))
    assert found.label == "softmax"
    assert len(found.reasons) <= 5
    assert all(len(text) < 300 for text in (found.sentence, *found.reasons))


def test_a_mechanism_that_failed_once_is_not_taken_over_one_that_never_did() -> None:
    found = sampled(made_up.comparison(seeds=5), quality={"reformer": 0.9})
    assert found.label == "linear"
    assert "of those that never failed" in found.sentence
    assert "better than reformer" not in found.sentence


def test_without_baselines_the_answer_says_that_scores_may_mean_nothing() -> None:
    assert any("no baseline to compare with" in reason for reason in sampled(baselines={}).reasons)


def test_without_any_result_there_is_no_answer() -> None:
    setting = made_up.comparison()
    records = [made_up.failed(record, "timeout", "not done") for record in made_up.sample(setting)]
    assert told(setting, records).verdict == "nothing"
    assert "no run came to its end" in told(setting, records).sentence
    assert "no run has come to its end" in told(setting, []).sentence


def test_failures_and_missing_runs_are_held_against_the_answer() -> None:
    setting = made_up.comparison()
    records = made_up.sample(setting)
    reasons = told(setting, [r for r in records if r["spec"].get("seed") != 2 or r["kind"] != "fit"]).reasons
    assert (
        "Failed: reformer:hashes=4, 1 of 3 runs (not finite); dense, 2 of 3 runs (out of memory)." in reasons
    )
    assert any(reason.startswith("6 of 18 training runs are missing") for reason in reasons)


def test_softmax_as_the_answer_names_the_lengths_at_which_others_overtake_it() -> None:
    found = sampled(quality={"softmax": 0.75})
    assert found.label == "softmax"
    assert any("linear is faster than fused softmax from about" in reason for reason in found.reasons)
    assert any(
        "reformer:hashes=4 and dense are not faster than fused softmax" in reason for reason in found.reasons
    )


def test_where_lower_is_better_better_still_means_better() -> None:
    found = sampled(
        made_up.comparison(made_up.ROWS[:2], metric="mae"),
        quality={"softmax": 12.0, "linear": 11.0},
        baselines={"majority": 20.0, "boosting": 15.0},
    )
    assert found.label == "linear"
    assert any(
        "is better than the best baseline, gradient boosting with mean absolute error 15.00" in reason
        for reason in found.reasons
    )
