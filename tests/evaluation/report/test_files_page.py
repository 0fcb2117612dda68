from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoseg.common.pages import LARGEST_SVG, SIZE, chart
from autoseg.evaluation.evaluate import CrossValidation
from autoseg.evaluation.figures.charts import draw_scores
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.report.contents import folder_report, methods_of
from autoseg.evaluation.report.facts import case_table, class_table
from autoseg.evaluation.report.files import Report, write_report, write_tables
from autoseg.evaluation.scores import Summary
from tests.evaluation.scores import case, three_cases
from tests.making import tiny_plan

LABELS = ScoredClasses({"lung": (1,), "lesion": (2,)})


class Tags(HTMLParser):
    """Keeps the tags, where pictures and links come from, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.without_words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "img" and not known.get("alt"):
            self.without_words.append(str(known.get("src"))[:40])


def written(folder: Path, report: Report) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


def simple(summary: Summary) -> Report:
    return folder_report(Path("truth"), Path("predicted"), summary, [], LABELS, 1)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    text = written(tmp_path, simple(three_cases()))
    found = Tags(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    links = [source[1:] for source in found.sources if source.startswith("#")]
    assert set(links) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not found.without_words
    assert "0.800 ± 0.200" in text
    assert "n = 3" in text
    assert "1 case has no prediction and counts in no mean: d" in text


def test_the_same_bytes_again(tmp_path: Path) -> None:
    assert written(tmp_path, simple(three_cases())) == written(tmp_path, simple(three_cases()))


def test_what_is_not_known_is_not_there(tmp_path: Path) -> None:
    text = written(tmp_path, simple(three_cases()))
    for section in ("worst", "training", "data", "plan", "run"):
        assert f'id="{section}"' not in text
        assert f'"#{section}"' not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    summary = Summary((case("<script>", **{"<i>": (1, 0, 0, 1), "</style>": (1, 0, 0, 1)}),))
    report = Report(
        title="<b>",
        key_figures={"<u>": "<s>"},
        facts={"<i>": "</dl>"},
        classes=class_table(summary),
        cases=case_table(summary, links={"<script>": '"onclick="'}),
        summary=summary,
        warnings=("<em>",),
    )
    found = Tags(written(tmp_path, report))
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert not {"b", "i", "u", "s", "em"} & set(found.tags)


def test_large_figures_become_png() -> None:
    small = Summary(tuple(case(f"c{i}", x=(i, 1, 1, 1)) for i in range(3)))
    large = Summary(tuple(case(f"c{i}", x=(i, 1, 1, 1)) for i in range(3000)))
    kinds = [chart(draw_scores(each), "t", "a").data.split(";")[0] for each in (small, large)]
    assert kinds == ["data:image/svg+xml", "data:image/png"]
    assert len(chart(draw_scores(large), "t", "a").data) < LARGEST_SVG


@pytest.mark.parametrize("folder", ["", "new/folder"])
def test_tables_are_written(tmp_path: Path, folder: str) -> None:
    paths = write_tables(tmp_path / folder, three_cases(), {"Folds": [("fold", "x"), ("0", "1")]})
    assert [p.name for p in paths] == ["summary.json", "table.md", "table.csv", "dice.png"]
    assert all(path.stat().st_size for path in paths)
    headings = [s for s in paths[1].read_text(encoding="utf-8").splitlines() if s.startswith("#")]
    assert headings == ["## Folds", "## Mean of every metric", "## Dice"]
    assert Summary.load(paths[0]) == three_cases()


def test_failures_are_the_first_thing_on_the_page(tmp_path: Path) -> None:
    failed = replace(three_cases(), failures=("fold 1: <no convergence>",))
    text = written(tmp_path, simple(failed))
    assert text.index("fold 1: &lt;no convergence&gt;") < text.index('id="scores"')
    assert 'class="failures"' not in written(tmp_path, simple(three_cases()))


def test_the_paragraph_for_a_paper_cites_what_its_bibliography_has(tmp_path: Path) -> None:
    validation = CrossValidation({0: three_cases()}, (1, 2, 3, 4))
    report = replace(simple(three_cases()), methods=methods_of(tiny_plan(), validation))
    written(tmp_path, report)
    paragraph = (tmp_path / "methods.txt").read_text(encoding="utf-8")
    bibtex = (tmp_path / "references.bib").read_text(encoding="utf-8")
    cited = set(re.findall(r"@(\w+)\]", paragraph))
    assert cited == set(re.findall(r"@\w+\{(\w+),", bibtex))
    assert "isensee2021nnunet" in cited
    assert "mueller2021robust" not in cited
    assert "8 x 8 x 8 voxels" in paragraph
    assert "3 cases were evaluated in 5-fold cross-validation, of which 1 fold is" in paragraph
    assert bibtex.count("{") == bibtex.count("}")


@pytest.mark.parametrize(
    ("spacing", "steps", "words"),
    [
        ([1.0, 1.5, 2.0], ["resample"], "resampled to 1.0 x 1.5 x 2.0 mm and"),
        ([1.0, 1.5, None], ["resample"], "resampled to 1.0 x 1.5 mm in planes and"),
        ([None, None, None], ["resample"], "Images were preprocessed"),
        ([1.0, 1.5, 2.0], [], "Images were preprocessed"),
    ],
)
def test_the_paragraph_for_a_paper_names_resampled_axes_only(
    spacing: list[float | None], steps: list[str], words: str
) -> None:
    plan = tiny_plan(target_spacing_mm=spacing, preprocessing=[{"step": step} for step in steps])
    assert words in methods_of(plan, CrossValidation({0: three_cases()}, ()))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_paragraph_for_a_paper_names_and_cites_mixing(tmp_path: Path, share: float) -> None:
    plan = tiny_plan(sampling={"mix_probability": share})
    methods = methods_of(plan, CrossValidation({0: three_cases()}, ()))
    assert ("In 50 % of the patches" in methods) == (share > 0)
    written(tmp_path, replace(simple(three_cases()), methods=methods))
    bibtex = (tmp_path / "references.bib").read_text(encoding="utf-8")
    assert ("yun2019cutmix" in bibtex) == (share > 0)
    assert bibtex.count("{") == bibtex.count("}")


def test_the_page_states_its_size(tmp_path: Path) -> None:
    text = written(tmp_path, simple(three_cases()))
    assert f"{len(text.encode()) / 1e6:.1f} MB" in text
    assert SIZE not in text
