from __future__ import annotations

from pathlib import Path

import pytest
from bench_few_cases import PARTS, SETS, Job, images_of, jobs_of, split

CASES = [f"case_{number}" for number in range(1, 19)]


@pytest.mark.parametrize("name", ["sarcoma-ct", "head-neck"])
def test_the_parts_of_a_set_are_unseen_once(name: str) -> None:
    splits = [split(CASES, SETS[name], job) for job in jobs_of("x", [name], ["2m"], [1])]
    assert len(splits) == PARTS
    assert sorted(case for _, unseen in splits for case in unseen) == sorted(CASES)
    assert all(sorted(training + unseen) == sorted(CASES) for training, unseen in splits)


def test_a_seed_draws_the_same_cases_for_each_code_and_budget() -> None:
    def drawn(code: str, budget: str, seed: int) -> tuple[list[str], list[str]]:
        return split(CASES, SETS["hippocampus-5"], Job(code, "hippocampus-5", budget, seed, 0))

    assert drawn("a", "2m", 1) == drawn("b", "8m", 1) != drawn("a", "2m", 2)
    assert len(drawn("a", "2m", 1)[0]) == 5


def test_the_name_of_a_case_may_be_the_start_of_another(tmp_path: Path) -> None:
    names = ["pt_13_0000", "pt_13_0001", "pt_132_0000", "pt_132_0001", "a", "a_b"]
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    found = images_of(tmp_path, ["pt_13", "pt_132", "a", "a_b"])
    assert {case: [path.name for path in paths] for case, paths in found.items()} == {
        "pt_13": ["pt_13_0000.nii.gz", "pt_13_0001.nii.gz"],
        "pt_132": ["pt_132_0000.nii.gz", "pt_132_0001.nii.gz"],
        "a": ["a.nii.gz"],
        "a_b": ["a_b.nii.gz"],
    }
