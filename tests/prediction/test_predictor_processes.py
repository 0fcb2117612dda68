"""A predictor in other processes and threads: pools that spawn or fork, data loaders, threads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.prediction.backends import is_installed
from autoseg.prediction.predictor import Predictor
from tests.prediction.making import save_model
from tests.prediction.trained import plan_of

BACKENDS = ["torch", *(["openvino"] if is_installed() else [])]

SCRIPT = """
import json, multiprocessing, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch, autoseg

SCANS = [np.random.default_rng(seed).normal(size=(40, 40, 40)).astype("f4") for seed in range(2)]

class Scans:
    def __len__(self):
        return len(SCANS)
    def __getitem__(self, index):
        return total(index)

def total(index, used=None):
    return int((used or predictor).predict(SCANS[index], spacing_mm=(1, 1, 1)).astype(int).sum())

def sent(job):
    return total(*job)

if __name__ == "__main__":
    _, model, backend = sys.argv
    torch.set_num_threads(2)
    predictor = autoseg.Predictor(model, device="cpu", backend=backend)
    found = {"alone": [total(index) for index in range(2)]}  # starts the threads
    found["threads"] = list(ThreadPoolExecutor(2).map(total, range(2)))
    if "fork" in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found["fork"] = pool.map_async(total, range(2)).get(100)
    loader = torch.utils.data.DataLoader(Scans(), num_workers=1, timeout=100)
    found["loader"] = [int(each) for each in loader]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found["spawn"] = pool.map(sent, [(index, predictor) for index in range(2)])
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(plan_of(), folder, "0", "1")
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_same(tmp_path: Path, model: Path, backend: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, model, backend], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(each == found["alone"] for each in found.values()), found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_predictor_can_be_pickled(model: Path, backend: str) -> None:
    predictor = Predictor(model, device="cpu", backend=backend)
    scan = np.random.default_rng(0).normal(size=(20, 20, 20))
    expected = predictor.predict(scan, spacing_mm=(1, 1, 1))  # with what it keeps after a use
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy.backend_name == predictor.backend_name
    assert (copy.predict(scan, spacing_mm=(1, 1, 1)) == expected).all()
