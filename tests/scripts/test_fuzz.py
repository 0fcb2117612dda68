"""The seeds of the fuzzer, read again; and its mutations of packed models, with a plain mutator."""

from __future__ import annotations

from pathlib import Path
from random import Random

import fuzz
import pytest

from autoseg.common.errors import AutosegError
from autoseg.models.archive import open_archive

LARGEST = 200 * 1024  # bytes of all seeds


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_seeds_give_nothing_but_our_errors(target: str) -> None:
    seeds = sorted((fuzz.SEEDS / target).iterdir())
    assert seeds
    for seed in seeds:
        fuzz.attempt(target, seed.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_every_target_has_seeds_that_are_read(target: str) -> None:
    """A corpus of refused files alone would never get far into a reader."""
    read = 0
    for seed in (fuzz.SEEDS / target).iterdir():
        try:
            fuzz.TARGETS[target](seed.read_bytes())
            read += 1
        except AutosegError:
            pass
    assert read


def test_seeds_are_small() -> None:
    assert sum(path.stat().st_size for path in fuzz.SEEDS.rglob("*") if path.is_file()) < LARGEST


def test_a_changed_model_gets_past_its_checksums(tmp_path: Path) -> None:
    """With the manifest made anew; then what was changed itself is read."""
    content = (fuzz.SEEDS / "model_zip" / "tiny.zip").read_bytes()
    rng = Random(0)

    def mutate(inner: bytes, most: int) -> bytes:
        changed = bytearray(inner)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed[:most])

    opened = 0
    for seed in range(60):
        path = tmp_path / "model.zip"
        path.write_bytes(fuzz.mutated_zip(content, mutate, seed))
        fuzz.attempt("model_zip", path.read_bytes())
        try:
            open_archive(path)
            opened += 1
        except AutosegError:
            pass
    assert opened > 20
    assert fuzz.mutated_zip(b"no zip", mutate, 0) != b"no zip"


def test_the_words_of_the_seeds(tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(b'{"a b": "c", "d": "\xc3\xa4", 1: ""}')
    fuzz.write_words([tmp_path / "seed"], tmp_path / "words")
    assert (tmp_path / "words").read_text() == '"\\"a b\\""\n"\\"c\\""\n"\\"d\\""\n'
