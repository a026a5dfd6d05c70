"""The page of a conversion: what it lost, what was won back, and what it saves by length."""

import json
import shlex
from pathlib import Path
from typing import Any

from subquad.files import write_whole
from subquad.report import formats
from subquad.report.conversion_figures import STAGES, Document, cost_content, learning_content
from subquad.report.markup import Markup, element, join
from subquad.report.page import contents_of, facts_list, page_html, section_html
from subquad.report.sections import Shown
from subquad.report.sections.configuration import labelled, pairs_html
from subquad.report.table import Table, download

MEASURES = {  # of quality: the label, and what it says; the first that a model has is the one it is judged by
    "bits_per_byte": ("bits per byte", "what held-out texts cost to tell; lower is better"),
    "cosine": ("cosine", "of the embedding of a held-out text with the original model's; 1 is the same"),
    "rank_correlation": (
        "rank correlation",
        "of the similarities of all pairs of held-out texts; 1 is the same",
    ),
    "divergence": ("divergence", "of a prediction from the original model's, in nats; 0 is the same"),
    "agreement": ("agreement", "share of predictions whose likeliest outcome is the original model's"),
}


def write_conversion(document: Document, path: Path) -> Path:
    """Write the page as one file; its path."""
    write_whole(path, conversion_page(document).encode())
    return path


def conversion_page(document: Document) -> str:
    """The page's text."""
    attention, model = document["asked"]["attention"], document["architecture"]
    shown = [
        Shown(id=id, title=title, content=content)
        for id, title, content in (
            ("quality", "Quality", quality_content(document)),
            ("learning", "Learning curves", learning_content(document)),
            ("cost", "Cost by length", cost_content(document)),
            ("configuration", "Configuration", configuration_content(document)),
        )
        if content is not None
    ]
    sentence, reasons = answer(document)
    header = element(
        "header",
        element("p", f"subquad convert · {model}", class_="eyebrow"),
        element("h1", f"{attention} in {model}"),
        facts_list(facts(document)),
    )
    box = element(
        "div",
        element("h2", "What it lost, won back and saves"),
        element("p", sentence, class_="sentence"),
        element("ul", *(element("li", reason) for reason in reasons)) if reasons else "",
        class_="answer take",
    )
    main = element(
        "main",
        element("section", box, id="answer", tabindex=-1),
        contents_of(shown),
        *map(section_html, shown),
    )
    made = f"Made by subquad {document['versions'].get('subquad', '')}."
    footer = element("footer", f"{made} This file is whole: it needs no network.")
    return page_html(f"{attention} in {model}", join((header, main, footer)))


def facts(document: Document) -> dict[str, str]:
    asked, machine = document["asked"], document["machine"]
    layers = document["layers"].values()
    return {
        "Model": Path(asked["model"]).name,
        "Layers converted": f"{sum(map(bool, layers)):,} of {len(layers):,}",
        "Positions": formats.count(asked["positions"]) if asked["positions"] else "",
        "Recovered by": Path(asked["recovery"]["table"]).name if asked["recovery"] else "nothing",
        "Machine": f"{machine.get('cpu')}, {machine.get('cores')} cores",
    }


def answer(document: Document) -> tuple[str, list[str]]:
    """The sentence above all, and what else is to be said at once."""
    stages, parts = document["stages"], []
    if stages:
        name = judged_by(document)
        label = MEASURES[name][0]
        scores = {stage["name"]: formats.score(stage["quality"][name]) for stage in stages}
        first, last = scores["converted"], list(scores.values())[-1]
        won = f"; training on brought it to {last}" if len(scores) > 2 else ""
        parts.append(f"Conversion took its {label} from {scores['original']} to {first}{won}.")
    if document["reading"]:
        longest = document["reading"][-1]
        before, after = longest["original"], longest["converted"]
        speed = formats.times(before["ms"] / after["ms"])
        memory = f", in {formats.times(after['mb'] / before['mb'])} the memory" if before["mb"] else ""
        parts.append(f"A text of {longest['tokens']:,} tokens is {speed} as fast{memory}.")
    reasons = []
    if document["decoding"]:
        longest = document["decoding"][-1]
        before, after = (
            f"{formats.significant(each['tokens_per_second'])} a second from a cache of "
            f"{formats.significant(each['cache_mb'])} MB"
            for each in (longest["original"], longest["converted"])
        )
        reasons.append(f"After {longest['tokens']:,} tokens it generates {after}, and as it was {before}.")
    if not stages:
        reasons.append(
            "Nothing was trained on, and what conversion lost was not measured: give a table, --recover."
        )
    elif document["asked"]["recovery"]["config"]["transfer"] and all(x["name"] != "transfer" for x in stages):
        reasons.append("There was no transfer, for the mechanisms have no weights of their own to learn.")
    return " ".join(parts) or "The model was converted, and nothing was measured.", reasons


def judged_by(document: Document) -> str:
    known = document["stages"][0]["quality"]
    return next(name for name in MEASURES if name in known)


def quality_content(document: Document) -> Markup | None:
    """Held-out texts at each stage."""
    stages = document["stages"]
    if not stages:
        return None
    names = [name for name in MEASURES if name in stages[0]["quality"]]
    table = Table(
        caption="On texts that nothing was learnt from",
        columns=("stage", "steps", *(MEASURES[name][0] for name in names), "seconds a step"),
        rows=tuple(
            (
                STAGES[stage["name"]],
                stage["steps"] or None,
                *(stage["quality"][name] for name in names),
                stage["seconds"] / stage["steps"] if stage["steps"] else None,
            )
            for stage in stages
        ),
    )
    meanings = (
        element("li", element("strong", MEASURES[name][0]), f": {MEASURES[name][1]}") for name in names
    )
    return join((element("ul", *meanings), table.html()))


def configuration_content(document: Document) -> Markup:
    """What to type to do the same again, where it was done, and all figures."""
    layers = Table(
        caption="What each layer attends by",
        columns=("layer", "attention"),
        rows=tuple((name, attention or "as it was") for name, attention in document["layers"].items()),
    )
    return join(
        (
            element("h3", "To do it again"),
            element("pre", element("code", command(document)), tabindex=0, aria_label="Command"),
            element("h3", "Layers"),
            layers.html(),
            element(
                "div",
                element("div", element("h3", "Machine"), pairs_html(labelled(document["machine"]))),
                element("div", element("h3", "Versions"), pairs_html(document["versions"])),
                class_="pair",
            ),
            element(
                "p",
                download(
                    json.dumps(document),
                    name="conversion.json",
                    kind="application/json",
                    words="All figures (JSON)",
                ),
            ),
        )
    )


def command(document: Document) -> str:
    asked = document["asked"]
    words = ["subquad", "convert", asked["model"], "--attention", asked["attention"]]
    options: dict[str, Any] = {"positions": asked["positions"]}
    if asked["only"] != "*":
        options["only"] = asked["only"]
    if recovery := asked["recovery"]:
        options |= {"recover": recovery["table"], **recovery["texts"], **recovery["config"]}
    if document["reading"]:
        options["lengths"] = ",".join(str(each["tokens"]) for each in document["reading"])
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", "FOLDER"])
