"""Comparisons and records to show a report on. EVERY FIGURE HERE IS MADE UP; none was measured."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subquad.config import ModelConfig
from subquad.experiments.config import InputsConfig, TrainingConfig
from subquad.recorded import COMPARISON_VERSION, VERSION
from subquad.records import Record, Store, key
from subquad.report.findings import (
    ComparisonFindings,
    Findings,
    comparison_findings,
    findings_of,
)

Task = tuple[Mapping[str, Any], Sequence[Record]]  # the setting of one, and its records

OF_A_TASK = (
    *("label", "title", "task", "data", "summary", "unit", "objective", "metric", "metric_label"),
    *("higher_is_better", "balanced", "rows", "refusals"),
)
MACHINE = {
    "cpu": "Made-up CPU @ 2.5 GHz",
    "cores": 2,
    "memory_gb": 16,
    "os": "Linux x86_64",
    "python": "3.11.7",
    "torch": "2.13.0",
    "threads": 2,
    "devices": ["cpu"],
    "fingerprint": "00000000made0up0",
}
VERSIONS = {"subquad": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "lightning": "2.5.5"}
LENGTHS = (512, 1024, 2048, 4096, 8192)

# quality on the test split, events per second in training, milliseconds per history, MB of a training step
CHARACTER = {
    "softmax": (0.704, 38_000, 4.1, 610, 0),
    "linear": (0.709, 52_000, 3.2, 395, 0),
    "performer": (0.701, 31_000, 5.2, 520, 0),
    "infinity": (0.684, 21_000, 7.4, 470, 19_000),
    "reformer": (0.676, 17_000, 9.3, 700, 0),
}


def row(attention: str, *, causal: bool = False, **options: bool | int | float | str) -> dict[str, Any]:
    """One entry of comparison["rows"]."""
    chosen = ",".join(f"{name}={value}" for name, value in options.items())
    label = f"{attention}:{chosen}" if chosen else attention
    return {"attention": attention, "options": options, "causal": causal, "label": label}


ROWS = (
    row("softmax"),
    row("linear"),
    row("performer", features=64),
    row("infinity", causal=True),
    row("reformer", hashes=4),
    row("dense"),
)
TWELVE = (
    *ROWS[:5],
    row("linear", size=2),
    row("linear", size=3),
    row("performer", features=8),
    row("performer", features=128),
    row("infinity", causal=True, basis=128, samples=128),
    row("reformer", hashes=8),
    row("dense"),
)


def comparison(
    rows: Sequence[Mapping[str, Any]] = ROWS,
    *,
    seeds: int = 3,
    metric: str = "auc",
    task: str = "transactions",
    target: str = "churn",
    **other: Any,
) -> dict[str, Any]:
    """A comparison of one task as `settings_of` has it; the keys of the runs are added by `with_keys`."""
    return {
        "version": COMPARISON_VERSION,
        "label": task,
        "title": "churn from transactions (made-up figures)",
        "task": f"{task}:target={target}",
        "data": {
            "task": task,
            "target": target,
            "options": {},
            "fingerprint": "feed0made0up0000",
            "length": 512,
        },
        "summary": SUMMARY,
        "unit": "event",
        "objective": "binary",
        "metric": metric,
        "metric_label": {"auc": "AUC", "mae": "mean absolute error"}.get(metric, metric),
        "higher_is_better": metric != "mae",
        "balanced": metric in ("auc", "macro_f1"),
        "rows": [dict(mechanism) for mechanism in rows],
        "refusals": [],
        "attention": [mechanism["label"] for mechanism in rows],
        "length": None,
        "seeds": seeds,
        "model": asdict(ModelConfig()),
        "training": asdict(TrainingConfig(steps=400)),
        "place": {"device": "cpu", "threads": 2},
        "workers": 1,
        "bench": True,
        "lengths": list(LENGTHS),
        **other,
    }


SUMMARY = {
    "target": "churn",
    "kind": "binary",
    "metric": "auc",
    "events": 1_469_307,
    "entities": 2_469,
    "inputs": ["product_category", "department", "amount", "age"],
    "categories": {"product_category": 302, "department": 31},
    "ages count from": "history",
    "splits": {
        split: {
            "examples": examples,
            "entities": entities,
            "history": {"median": 310.0, "longest": 4_812},
            "classes": {"stays": examples - examples // 10, "leaves": examples // 10},
        }
        for split, examples, entities in (
            ("train", 9_876, 1_481),
            ("validation", 988, 494),
            ("test", 988, 494),
        )
    },
}


def examples(score: float, name: str) -> dict[str, Any]:
    """What each of two examples of a household adds to the score: much of it the same for every row."""
    chance, hard = random.Random(f"{name} examples"), random.Random("how hard each example is")
    size = SUMMARY["splits"]["test"]["examples"]
    parts = [hard.gauss(0, 0.3) + chance.gauss(0, 0.1) for _ in range(size)]
    mean = sum(parts) / size
    return {
        "contribution": [float(f"{score + part - mean:.7g}") for part in parts],
        "group": [place // 2 for place in range(size)],
    }


def older(records: Sequence[Record]) -> list[Record]:
    """The records as versions wrote them that kept no scores of single examples."""
    return changed(
        records,
        lambda record: {
            **record,
            "result": {name: value for name, value in record["result"].items() if name != "examples"},
        },
    )


def fit(entry: Mapping[str, Any], seed: int, setting: Mapping[str, Any], *, score: float) -> Record:
    """A fit that went well, with a curve that ends near `score` on validation."""
    chance = random.Random(f"{entry['label']} {seed}")
    _, speed, latency, memory, extra = CHARACTER.get(entry["attention"], CHARACTER["softmax"])
    batch, steps, metric = setting["training"]["batch"], setting["training"]["steps"], setting["metric"]
    every = -(-steps // 6)
    curve: list[dict[str, Any]] = []
    for step in range(max(1, every // 5), steps + 1, max(1, every // 5)):
        done = step / steps
        point: dict[str, Any] = {
            "step": step,
            "examples": step * batch,
            "loss": 0.28 + 0.42 * math.exp(-5 * done) + chance.gauss(0, 0.008),
        }
        if len(curve) % 5 == 4:
            reached = 0.5 + (score - 0.49) * (1 - math.exp(-4 * done)) + chance.gauss(0, 0.003)
            point["validation"] = {metric: reached, "loss": 0.30}
        curve.append(point)
    best = max((point for point in curve if "validation" in point), key=lambda p: p["validation"][metric])
    wobble = chance.uniform(0.96, 1.04)
    return {
        **_run("fit", {**_shared(setting), "mechanism": _mechanism(entry), "seed": seed}),
        "status": "ok",
        "reason": "",
        "result": {
            "test": {metric: score, "loss": 0.31},
            "examples": examples(score, f"{entry['label']} {seed}"),
            "validation": best["validation"],
            "best_step": best["step"],
            "curve": curve,
            "parameters": {
                "total": 132_481 + extra,
                "attention": 33_280 + extra,
                "grows_with_length": 0,
            },
            "form": "causal" if entry["causal"] else "bidirectional",
            "options": {**entry["options"], "epsilon": 1e-6},
        },
        "measured": {
            "train_examples_per_second": speed / 300 * wobble,
            "train_units_per_second": speed * wobble,
            "train_seconds": 55.0,
            "peak_mb": 900.0 + memory,
            "latency_ms": {
                "median": latency * wobble,
                "low": latency * wobble * 0.97,
                "high": latency * wobble * 1.06,
                "repeats": 40,
                "length": setting["data"]["length"],
            },
            "training_peak_mb": memory * wobble,
            "training_peak_method": "resident",
        },
        "data": {"fingerprint": setting["data"]["fingerprint"], "summary": setting["summary"]},
        "seconds": 61.0,
    }


def baseline(name: str, seed: int, setting: Mapping[str, Any], *, score: float) -> Record:
    shared = {"data": setting["data"], "place": setting["place"]}
    return {
        **_run("baseline", {**shared, "baseline": name, "seed": seed}),
        "status": "ok",
        "reason": "",
        "result": {"test": {setting["metric"]: score}, "examples": examples(score, f"{name} {seed}")},
        "measured": {},
        "data": {"fingerprint": setting["data"]["fingerprint"], "summary": setting["summary"]},
        "seconds": 2.0,
    }


def bench(entry: Mapping[str, Any], length: int, setting: Mapping[str, Any]) -> Record:
    """A cell whose times grow with the square of length for softmax, and otherwise in proportion."""
    chance = random.Random(f"{entry['label']} {length}")
    kilo = length / 1024
    base = 0.25 * kilo + 1.9 * kilo**2
    ours = {
        "softmax": base,
        "linear": 0.5 + 1.6 * kilo,
        "performer": 1.0 + 4.6 * kilo,
        "infinity": 5.0 + 9.5 * kilo,
        "reformer": 6.0 + 28.0 * kilo,
        "dense": 3.4 * kilo**2,
    }[entry["attention"]]
    memory = {
        "softmax": 0.6 + 2.2 * kilo,
        "linear": 1.0 + 4.1 * kilo,
        "dense": 20.0 * kilo**2,
    }.get(entry["attention"], 1.0 + 7.5 * kilo)

    def timing(median: float) -> dict[str, float]:
        median *= chance.uniform(0.97, 1.03)
        return {"median": median, "low": 0.97 * median, "high": 1.05 * median, "repeats": 30}

    return {
        **_run(
            "bench",
            {
                "mechanism": _mechanism(entry),
                "length": length,
                "inputs": asdict(InputsConfig(head_dim=setting["model"]["dim"] // setting["model"]["heads"])),
                "peers": False,
                "place": setting["place"],
            },
        ),
        "status": "ok",
        "reason": "",
        "result": {},
        "measured": {
            "forward": {"ms": timing(ours), "reference_ms": timing(base)},
            "forward_backward": {"ms": timing(3.3 * ours), "reference_ms": timing(3.1 * base)},
            "memory": {"mb": memory, "reference_mb": 0.6 + 2.2 * kilo, "method": "resident"},
        },
        "data": {},
        "seconds": 6.0,
    }


def failed(record: Record, status: str, reason: str) -> Record:
    """The same run, had it ended badly."""
    return {
        **record,
        "status": status,
        "reason": reason,
        "result": {},
        "measured": {},
        "data": {},
        "log": "Traceback (most recent call last): …",
        "seconds": 12.5,
    }


def sample(
    setting: Mapping[str, Any],
    *,
    quality: Mapping[str, float] | None = None,
    baselines: Mapping[str, float] | None = None,
    noise: float = 0.003,
) -> list[Record]:
    """Records of a whole comparison. "dense" exhausts the memory; one seed of "reformer" diverges."""
    baselines = {"majority": 0.5, "boosting": 0.672} if baselines is None else baselines
    records = [baseline(name, 0, setting, score=score) for name, score in baselines.items()]
    for seed in range(setting["seeds"]):
        shared = random.Random(f"data order {seed}").gauss(0, noise)
        for entry in setting["rows"]:
            name = entry["attention"]
            reached = (quality or {}).get(name, CHARACTER.get(name, (0.7,))[0])
            own = random.Random(f"{entry['label']} {seed} score").gauss(0, noise / 3)
            record = fit(entry, seed, setting, score=reached + shared + own)
            if name == "dense":
                record = failed(record, "out of memory", "tried to allocate 34,359,738,368 bytes")
            if name == "reformer" and seed == 1:
                record = failed(record, "not finite", "the training loss is nan at step 212")
            records.append(record)
    for length in setting["lengths"]:
        for entry in setting["rows"]:
            record = bench(entry, length, setting)
            if entry["attention"] == "dense" and length > 2048:
                record = failed(record, "out of memory", "killed by signal 9, as the system does then")
            records.append(record)
    return records


def write(folder: Path, setting: Mapping[str, Any], records: Sequence[Record]) -> Path:
    """The folder of a comparison of one task with these records."""
    return write_several(folder, [(setting, records)])


def write_several(folder: Path, tasks: Sequence[Task]) -> Path:
    """The folder of a comparison of several tasks."""
    store = Store(folder)
    for _, records in tasks:
        for record in records:
            store.put(record)
    store.put_comparison(document(tasks))
    return folder


def with_keys(setting: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """The comparison of one task whose runs made these records."""
    keys: dict[str, list[str]] = {"baseline": [], "fit": [], "bench": []}
    for record in records:
        keys[record["kind"]].append(record["key"])
    return {**setting, "keys": keys}


def document(tasks: Sequence[Task]) -> dict[str, Any]:
    """What comparison.json holds of tasks that are compared together; the first has what they share."""
    keyed = [with_keys(setting, records) for setting, records in tasks]
    benches = [key for setting in keyed for key in setting["keys"]["bench"]]
    rows = [row for setting in keyed for row in setting["rows"]]
    return {
        **{name: value for name, value in keyed[0].items() if name not in OF_A_TASK},
        "tasks": [
            {name: setting[name] for name in OF_A_TASK}
            | {"keys": {kind: setting["keys"][kind] for kind in ("baseline", "fit")}}
            for setting in keyed
        ],
        "rows": [row for place, row in enumerate(rows) if row not in rows[:place]],
        "keys": {"bench": list(dict.fromkeys(benches))},
    }


def findings(setting: Mapping[str, Any], records: Sequence[Record]) -> Findings:
    return findings_of(with_keys(setting, records), records)


def whole(*tasks: Task) -> ComparisonFindings:
    """What is found on tasks that are compared together."""
    records = {record["key"]: record for _, each in tasks for record in each}
    return comparison_findings(document(tasks), list(records.values()))


def changed(records: Sequence[Record], change: Callable[[Record], Record]) -> list[Record]:
    return [change(record) for record in records]


def _run(kind: str, spec: dict[str, Any]) -> Record:
    return {
        "key": key(kind, VERSION, spec),
        "kind": kind,
        "version": VERSION,
        "spec": spec,
        "versions": VERSIONS,
        "machine": MACHINE,
    }


def _mechanism(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the comparison without its label."""
    return {"attention": entry["attention"], "options": dict(entry["options"]), "causal": entry["causal"]}


def _shared(setting: Mapping[str, Any]) -> dict[str, Any]:
    steps = setting["training"]["steps"]
    return {
        **{name: deepcopy(setting[name]) for name in ("data", "model", "training", "place")},
        "validate": -(-steps // 6),
        "warmup": -(-steps // 10),
    }
