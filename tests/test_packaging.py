"""What a package index shows of the project."""

import re
from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).parent.parent
HOME = "https://example.org/subquad"

absolute = run_path(str(ROOT / "hatch_build.py"))["absolute"]


def test_no_link_of_the_description_depends_on_where_it_is_read():
    links = re.findall(r"\]\(([^)]+)\)", absolute((ROOT / "README.md").read_text("utf-8"), HOME))
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
    for link in links:
        if link.startswith(HOME):
            assert (ROOT / link.split("/main/")[1].partition("#")[0]).exists(), link


def test_pictures_lead_to_files_and_other_links_to_pages():
    text = "[a](b.md) ![c](d.png) [e](https://f.org) [g](#h)"
    assert absolute(text, HOME) == (
        f"[a]({HOME}/blob/main/b.md) ![c]({HOME}/raw/main/d.png) [e](https://f.org) [g](#h)"
    )
