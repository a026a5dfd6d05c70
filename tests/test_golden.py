"""Figures stay what they were: the scores of small runs, as they were before tasks became a contract."""

import pytest
import torch
from experiments_sample import changed, quick
from own_sample import write
from purchases import purchases

from subquad import tasks
from subquad.experiments.fit import fit
from subquad.task import baseline_result
from subquad.tasks.transactions import prepared


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("column", "kind", "score", "loss", "constant"),
    [
        ("over_55", "binary", 1.0, 0.2373012900352478, 0.5),
        ("region", "multiclass", 0.6666666666666666, 0.6443185309569041, 0.4444444444444444),
        ("age", "regression", 14.940335508701278, 0.8403249714109633, 13.333333333333334),
    ],
)
def test_a_fit_on_own_data_scores_what_it_always_did(tmp_path, column, kind, score, loss, constant):
    schema = write(tmp_path, column=column, kind=kind)
    data = tasks.load("custom", schema=str(schema))
    metric = data.objective.metric
    fitted = fit(quick(schema, data), data, checkpoint_path=tmp_path / "kept", tell=lambda *_: None)
    assert fitted.result["test"] == pytest.approx(
        {metric: score, "loss": loss}, rel=1e-5
    )  # machines differ in the last digits
    majority = data.baseline("majority", length=20, seed=0)
    assert baseline_result(data, majority)["test"] == pytest.approx({metric: constant})


@pytest.mark.parametrize(
    ("target", "score", "loss", "trees"),
    [
        ("churn", {"auc": 0.75}, 0.4291448287273708, {"auc": 0.5}),
        ("spend", {"accuracy": 0.15789473684210525}, 1.479494339541385, {"accuracy": 0.3684210526315789}),
    ],
)
def test_a_fit_on_transactions_scores_what_it_always_did(tmp_path, target, score, loss, trees):
    data = prepared(purchases(), target, fingerprint="x")
    spec = changed(
        quick(tmp_path, data),
        mechanism={"attention": "softmax"},
        training={"steps": 12},
        validate=6,
        data={"length": 16},
    )
    tested = fit(spec, data, checkpoint_path=tmp_path / "kept", tell=lambda *_: None).result["test"]
    assert tested == pytest.approx({**score, "loss": loss}, rel=1e-5)
    boosting = data.baseline("boosting", length=16, seed=0)
    assert baseline_result(data, boosting)["test"] == pytest.approx(trees)
