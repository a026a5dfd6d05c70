import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import report_samples as made_up
from playwright.sync_api import Browser, Page, sync_playwright

from subquad import report
from subquad.config import ModelConfig
from subquad.experiments.config import TrainingConfig
from subquad.records import Record, Store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"></script><script>document.title='hacked'</script>"
REMOTE = re.compile(r"""(?:src|href|action|srcset|data)\s*=\s*["']?\s*(?:https?:)?//|url\(|@import""", re.I)


def hostile() -> tuple[dict[str, Any], list[Record]]:
    """A comparison whose every text from outside tries to be markup."""
    rows = [dict(row) for row in made_up.ROWS]
    rows[2] |= {"options": {"features": HOSTILE}, "label": f"performer:features={HOSTILE}"}
    setting = made_up.comparison(rows, title=HOSTILE, task=HOSTILE, target=HOSTILE)
    setting["summary"] = {**made_up.SUMMARY, HOSTILE: [HOSTILE]}
    records = made_up.sample(setting)
    return setting, [{**r, "reason": HOSTILE} if r["status"] != "ok" else r for r in records]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole comparison."""
    setting = made_up.comparison()
    return report.write(made_up.write(tmp_path_factory.mktemp("runs"), setting, made_up.sample(setting)))


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return written.read_text("utf-8")


def test_the_page_holds_everything_and_names_no_address(text: str) -> None:
    assert not REMOTE.search(text)
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [("who stays away?", "Who stays away? "), ("the value of a key", "The value of a key. ")],
)
def test_a_question_ends_before_what_was_done_begins(tmp_path: Path, question: str, sentence: str) -> None:
    setting = made_up.comparison()
    setting["summary"] = {**made_up.SUMMARY, "question": question}
    page = report.write(made_up.write(tmp_path, setting, made_up.sample(setting))).read_text("utf-8")
    mechanisms = re.escape(sentence) + r"\w+ attention mechanisms in the same model"
    assert re.search(mechanisms, unescape(page))


def test_the_same_records_give_the_same_page(written: Path) -> None:
    before = written.read_bytes()
    assert report.write(written.parents[1]).read_bytes() == before


def test_what_must_be_said_is_said_in_order(text: str) -> None:
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert headings == [
        "The answer",
        "Leaderboard",
        "Quality against speed",
        "Learning curves",
        "Cost by length",
        "Fairness",
        "Failures",
        "Configuration and machine",
    ]
    for said in (
        "▲ </span>not told apart",
        "out of memory",
        "the training loss is nan at step 212",
        "equal in 18 runs",
        "+14 %",
        "Made-up CPU @ 2.5 GHz",
        "subquad compare transactions:target=churn --attention softmax",
    ):
        assert said in text


def test_what_differed_between_runs_is_shown(tmp_path: Path) -> None:
    setting = made_up.comparison()
    records = made_up.sample(setting)
    for record in records:
        if record["spec"].get("mechanism", {}).get("attention") == "linear" and record["kind"] == "fit":
            record["spec"]["training"]["learning_rate"] = 0.5
    page = report.write(made_up.write(tmp_path, setting, records)).read_text("utf-8")
    assert "Not all was equal: learning rate, warm-up." in page


def test_every_option_of_model_and_training_is_in_the_command_that_does_it_again(text: str) -> None:
    command = unescape(text).partition('aria-label="Command"')[2].partition("</pre>")[0]
    for config in (ModelConfig(), TrainingConfig()):
        for option in fields(config):
            assert f"--{option.name.replace('_', '-')} " in command


def test_an_option_that_the_report_does_not_know_is_held_equal_too() -> None:
    setting = made_up.comparison()
    records = made_up.sample(setting)
    for seed, record in enumerate(record for record in records if record["kind"] == "fit"):
        record["spec"]["training"]["label_smoothing"] = 0.1 * seed
    equalities = {each.what: each for each in made_up.findings(setting, records).equalities}
    assert equalities["label smoothing"].broken


def test_missing_runs_are_reported_and_the_rest_is_shown(tmp_path: Path) -> None:
    setting = made_up.comparison()
    records = made_up.sample(setting)
    made_up.write(tmp_path, setting, records)
    fits = [record for record in records if record["kind"] == "fit"]
    for record in fits[:3]:
        Store(tmp_path).record_path(record["key"]).unlink()
    page = report.write(tmp_path).read_text("utf-8")
    assert "3 of 50 runs are missing" in page
    assert "1 of 3 runs missing" in page


def test_a_bench_that_was_left_out_is_not_missed(tmp_path: Path) -> None:
    setting = made_up.comparison(bench=False, lengths=[])
    records = [record for record in made_up.sample(setting) if record["kind"] != "bench"]
    page = report.write(made_up.write(tmp_path, setting, records)).read_text()
    assert "Cost by length" not in page
    assert "missing" not in page
    assert "--no-bench" in page


def test_a_page_is_written_before_any_run_is_done(tmp_path: Path) -> None:
    made_up.write(tmp_path, made_up.comparison(), [])
    assert "no run has come to its end" in report.write(tmp_path).read_text("utf-8")


@pytest.mark.parametrize("content", ["{", "[]", '{"key": "x"}'])
def test_a_broken_record_is_named(tmp_path: Path, content: str) -> None:
    setting = made_up.comparison(made_up.ROWS[:1], seeds=1)
    records = made_up.sample(setting)
    made_up.write(tmp_path, setting, records)
    broken = Store(tmp_path).record_path(records[0]["key"])
    broken.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(broken))):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["{", '{"title": "x"}'])
def test_a_broken_comparison_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(ValueError, match=r"comparison\.json"):
        report.write(tmp_path)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no comparison"):
        report.write(tmp_path)


def test_writing_a_report_loads_no_torch(written: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from subquad import report; report.write(Path(sys.argv[1])); "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, written.parents[1]], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium to open the page in")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def complaints() -> list[str]:
    """What a page wrote to the console, threw, or asked the network for."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url))
    yield opened
    context.close()


def visit(page: Page, path: Path, complaints: list[str]) -> None:
    """Open the page; that it was asked for itself is no complaint."""
    page.goto(path.as_uri())
    complaints.remove(path.as_uri())
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.area'))"
    )


def stroke(page: Page) -> str:
    """The colour of the first line of the learning curves."""
    return page.evaluate("getComputedStyle(document.querySelector('#learning .lines path')).stroke")


def width(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


@pytest.mark.parametrize(("size", "dark"), [(1400, False), (390, True)])
def test_the_page_draws_all_figures_offline_at_any_width(
    page: Page, written: Path, complaints: list[str], size: int, dark: bool
) -> None:
    page.set_viewport_size({"width": size, "height": 900})
    page.emulate_media(color_scheme="dark" if dark else "light")
    visit(page, written, complaints)
    assert complaints == []
    assert page.locator(".plot").count() == 7
    assert page.locator(".plot .lines").count() > 30
    assert page.locator(".plot svg[data-row]").count() > 100
    assert width(page) == size


def test_figures_follow_the_window_the_colour_scheme_and_the_printer(
    page: Page, written: Path, complaints: list[str]
) -> None:
    visit(page, written, complaints)
    assert stroke(page) == "rgb(34, 38, 43)"
    page.emulate_media(color_scheme="dark")
    assert stroke(page) == "rgb(232, 234, 237)"
    page.set_viewport_size({"width": 390, "height": 900})
    widest = "Math.max(...[...document.querySelectorAll('.area')].map(svg => svg.clientWidth))"
    assert page.evaluate(widest) < 390
    assert width(page) == 390
    page.set_viewport_size({"width": 700, "height": 900})
    page.emulate_media(color_scheme="dark", media="print")
    assert stroke(page) == "rgb(34, 38, 43)"
    assert width(page) == 700
    assert complaints == []


def test_the_page_is_used_by_keyboard(page: Page, written: Path, complaints: list[str]) -> None:
    visit(page, written, complaints)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "answer"

    line = page.locator("#cost .plot").first.locator("[data-row=linear]").first
    button = page.locator("#cost button[data-hides=linear]")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not line.is_visible()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert line.is_visible()

    page.locator("#cost summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#cost details table").is_visible()


def named(page: Page) -> list[str]:
    """The rows of the leaderboard that are shown, in their order."""
    return [row.get_attribute("data-value") or "" for row in page.locator(".board tbody tr:visible th").all()]


def test_the_leaderboard_is_sorted_by_its_heads(page: Page, written: Path, complaints: list[str]) -> None:
    visit(page, written, complaints)
    first = named(page)
    assert page.locator(".board [aria-sort=descending]").inner_text().startswith("AUC")
    latency = page.locator(".board th", has_text="Latency")
    latency.locator("button").focus()
    page.keyboard.press("Enter")
    assert latency.get_attribute("aria-sort") == "ascending"
    assert page.locator(".board [aria-sort=descending]").count() == 0
    assert named(page)[0] == "linear"
    assert named(page)[4] == "reformer:hashes=4"
    assert set(named(page)[5:]) == {"gradient boosting", "majority", "dense"}  # what has no latency is last
    latency.locator("button").click()
    assert latency.get_attribute("aria-sort") == "descending"
    assert named(page)[0] == "reformer:hashes=4"
    assert named(page)[5:] == ["gradient boosting", "majority", "dense"]
    page.get_by_role("button", name="Mechanism").click()
    assert named(page) == sorted(first)
    page.get_by_role("button", name="AUC on test").click()
    assert named(page) == first
    assert complaints == []


def test_the_leaderboard_is_filtered_by_name(page: Page, written: Path, complaints: list[str]) -> None:
    visit(page, written, complaints)
    page.get_by_label("Show rows named").press_sequentially("FORMER bidirectional")
    assert named(page) == ["performer:features=64", "reformer:hashes=4"]
    assert page.get_by_role("status").inner_text() == "2 of 8 rows"
    page.get_by_label("Show rows named").fill("")
    assert len(named(page)) == 8
    assert complaints == []


def test_a_mark_that_is_pointed_at_says_what_it_is(page: Page, written: Path, complaints: list[str]) -> None:
    visit(page, written, complaints)
    sign = page.locator("#quality .plot").first.locator("svg[data-row=infinity] .target")
    sign.hover()
    assert page.locator(".tip").inner_text().startswith("infinity: AUC 0.68")
    page.mouse.move(0, 0)
    assert not page.locator(".tip").is_visible()
    assert complaints == []


def test_without_javascript_the_page_is_whole(browser: Browser, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written.as_uri())
    assert page.locator(".board tbody tr").count() == 8
    assert page.locator(".plot svg.area").count() == 7
    assert page.locator(".plot title").count() > 100
    assert not page.locator(".filter").is_visible()
    assert page.locator("button:enabled").count() == 0
    context.close()


def test_a_page_of_twelve_rows_and_three_seeds_stays_under_two_megabytes(tmp_path: Path) -> None:
    setting = made_up.comparison(made_up.TWELVE)
    path = report.write(made_up.write(tmp_path, setting, made_up.sample(setting)))
    assert path.stat().st_size < 2_000_000


def test_every_figure_has_a_name_a_table_and_its_data(
    page: Page, written: Path, complaints: list[str]
) -> None:
    visit(page, written, complaints)
    for figure in page.locator("figure").all():
        assert figure.locator("figcaption").count() == 1
        assert figure.locator("details table tbody tr").count() > 0
        for plot in figure.locator(".plot").all():
            assert plot.get_attribute("role") == "img"
            assert plot.get_attribute("aria-label")
    with page.expect_download() as saved:
        page.locator("#cost a.download").click()
    assert saved.value.suggested_filename == "cost.csv"
    assert "linear" in Path(saved.value.path()).read_text("utf-8")


def test_names_that_try_to_be_markup_stay_text(page: Page, tmp_path: Path, complaints: list[str]) -> None:
    visit(page, report.write(made_up.write(tmp_path, *hostile())), complaints)
    assert page.title() == HOSTILE
    assert page.locator("h1").inner_text().lower() == HOSTILE.lower()
    assert HOSTILE in page.locator("tr", has_text="out of memory").first.inner_text()
    sign = page.locator("#quality .plot").first.locator("svg[data-row^=performer] .target")
    sign.hover()
    assert HOSTILE in page.locator(".tip").inner_text()
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert complaints == []


def test_the_policy_of_the_page_stops_scripts_that_are_not_its_own(
    page: Page, written: Path, tmp_path: Path, complaints: list[str]
) -> None:
    forged = tmp_path / "forged.html"
    forged.write_text(written.read_text("utf-8").replace("<header>", f"<header>{HOSTILE}", 1), "utf-8")
    visit(page, forged, complaints)
    assert page.title() != "hacked"
    assert any("Content Security Policy" in complaint for complaint in complaints)
