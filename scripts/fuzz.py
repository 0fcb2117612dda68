"""Fuzz the readers of files from untrusted sources (atheris, coverage-guided).

    pip install '.[fuzz]'
    python scripts/fuzz.py plan --minutes 5

A reader may return, or raise an AutosegError. Anything else is a finding, as are 2 GB of memory or
30 seconds: the run stops, and the input is written to the folder `--found`. The seeds are in
tests/data/fuzz, and the tests replay them; new seeds are written to `--found`, too.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).resolve().parents[1] / "tests" / "data" / "fuzz"
MOST_MB, MOST_SECONDS, LONGEST_INPUT = 2048, 30, 1 << 16
PLAN, MANIFEST, WEIGHTS = "plan.json", "manifest.json", ".safetensors"
Mutate = Callable[[bytes, int], bytes]


@cache
def workplace() -> Path:
    """A folder for the input of readers, with two cases, one of them in two files."""
    folder = Path(tempfile.mkdtemp(prefix="autoseg_fuzz_"))
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def written(name: str, content: bytes) -> Path:
    """A file with this content."""
    path = workplace() / name
    path.write_bytes(content)
    return path


def read_plan(content: bytes) -> None:
    """A plan file; writing and reading it again gives the same plan."""
    from autoseg.plan.plan import load_plan, parse_plan

    plan = load_plan(written(PLAN, content))
    again = parse_plan(json.loads(json.dumps(plan.to_json(), allow_nan=False)), PLAN)
    assert again.id == plan.id


def read_overrides(content: bytes) -> None:
    """A JSON5 file of plan values, as for --overrides, and of studies."""
    from autoseg.planner.overrides import read_layer

    read_layer(written("overrides.json5", content), "--overrides")


def read_dataset(content: bytes) -> None:
    """A task's `dataset.json`, with a few files beside it."""
    from autoseg.dataset.task import find_task

    find_task(written("dataset.json", content).parent)


def read_model(content: bytes) -> None:
    """A packed model: its plan, weights, postprocessing and figures."""
    import torch

    from autoseg.prediction.model import load_model, load_postprocessing

    model = load_model(written("model.zip", content), None, torch.device("cpu"))
    load_postprocessing(model)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "plan": read_plan,
    "overrides": read_overrides,
    "dataset": read_dataset,
    "model_zip": read_model,
}


def attempt(target: str, content: bytes) -> None:
    """Run a reader; the errors that it may raise are not findings."""
    from autoseg.common.errors import AutosegError

    with suppress(AutosegError):
        TARGETS[target](content)


def mutated_zip(content: bytes, mutate: Mutate, seed: int) -> bytes:
    """A packed model with one file changed, most often with a manifest and weights that fit it.

    Otherwise every change would fail the check of the SHA-256.
    """
    rng = random.Random(seed)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            files = {info.filename: file.read(info) for info in file.infolist()}
        assert MANIFEST in files
    except Exception:
        return mutate(content, LONGEST_INPUT)
    if rng.random() < 0.1:
        return mutate(content, LONGEST_INPUT)
    name = rng.choice(sorted(files))
    files[name] = mutate(files[name], LONGEST_INPUT)
    if rng.random() < 0.75:
        files = fitted(files)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, inner in files.items():
            file.writestr(zipfile.ZipInfo(name), inner)
    return out.getvalue()


def fitted(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with the plan's id in all weights, and a manifest that lists what is there."""
    import hashlib

    from autoseg.plan.plan import parse_plan

    with suppress(ValueError, KeyError, RecursionError):
        plan_id = parse_plan(json.loads(files[PLAN]), PLAN).id
        files = {
            name: with_plan_id(content, plan_id) if name.endswith(WEIGHTS) else content
            for name, content in files.items()
        }
    with suppress(ValueError, TypeError, RecursionError):
        about = json.loads(files[MANIFEST])
        about["files"] = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
            if name != MANIFEST
        }
        files = files | {MANIFEST: json.dumps(about).encode()}
    return files


def with_plan_id(weights: bytes, plan_id: str) -> bytes:
    """Weights with the id of this plan; unchanged if they are damaged."""
    with suppress(ValueError, KeyError, TypeError, RecursionError, struct.error):
        (size,) = struct.unpack_from("<Q", weights)
        header: dict[str, Any] = json.loads(weights[8 : 8 + size])
        state = json.loads(header["__metadata__"]["state"]) | {"plan_id": plan_id}
        header["__metadata__"]["state"] = json.dumps(state)
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + weights[8 + size :]
    return weights


def write_words(seeds: Iterable[Path], path: Path) -> None:
    """The texts in the seeds as a dictionary of libFuzzer."""
    words = {word for seed in seeds for word in re.findall(rb'"[\w .-]{1,60}"', seed.read_bytes())}
    escaped = (word.decode()[1:-1] for word in sorted(words))
    path.write_text("".join(f'"\\"{word}\\""\n' for word in escaped), encoding="ascii")


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz_found"), help="folder for new seeds and findings"
    )
    return parser


def main() -> None:
    """Fuzz one reader; ends the process."""
    import atheris

    arguments = make_parser().parse_args()
    target = arguments.target
    found = arguments.found / target
    found.mkdir(parents=True, exist_ok=True)
    words = workplace() / "words.txt"
    write_words((SEEDS / target).iterdir(), words)
    with atheris.instrument_imports(include=["autoseg", "json5"]):
        for seed in (SEEDS / target).iterdir():
            attempt(target, seed.read_bytes())  # imports what it needs

    def mutator(content: bytes, most: int, seed: int) -> bytes:
        return mutated_zip(content, atheris.Mutate, seed)[:most]

    options = [
        f"-max_total_time={round(60 * arguments.minutes)}",
        f"-rss_limit_mb={MOST_MB}",
        f"-timeout={MOST_SECONDS}",
        f"-max_len={LONGEST_INPUT}",
        f"-artifact_prefix={found}/finding-",
        "-print_final_stats=1",
    ]
    if words.stat().st_size:  # an empty one is an error to libFuzzer
        options.append(f"-dict={words}")
    more = {"custom_mutator": mutator} if target == "model_zip" else {}
    argv = [sys.argv[0], *options, str(found), str(SEEDS / target)]
    atheris.Setup(argv, lambda content: attempt(target, content), **more)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
