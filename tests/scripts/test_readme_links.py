from __future__ import annotations

import re
from pathlib import Path

import pytest
from readme_links import absolute

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_links_become_absolute():
    text = "[Data](docs/data.md) ![demo](scripts/demo.png) [paper](https://doi.org/1) [up](#top)"
    assert absolute(text, "https://example.org/r", "1.2") == (
        "[Data](https://example.org/r/blob/v1.2/docs/data.md) "
        "![demo](https://example.org/r/raw/v1.2/scripts/demo.png) "
        "[paper](https://doi.org/1) [up](#top)"
    )


def test_without_a_repository_no_link_is_broken():
    text = "see [Data](docs/data.md) ![demo](scripts/demo.png) [paper](https://doi.org/1)"
    assert absolute(text, None, "1.2") == "see Data demo [paper](https://doi.org/1)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_a_clone_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links or page.parent.name == "docs"
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in text
