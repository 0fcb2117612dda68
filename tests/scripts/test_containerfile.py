"""The container: what it copies makes a wheel, and any user predicts on a read-only disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.making import write_scan
from tests.prediction.making import save_model
from tests.prediction.trained import plan_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "scripts" / "Containerfile").read_text(encoding="utf-8")


def test_the_copied_files_make_a_whole_wheel(tmp_path: Path) -> None:
    for line in re.findall(r"^COPY (.+)$", TEXT, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            to = tmp_path / target.removeprefix("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to)
            else:
                to = to / source if target.endswith("/") else to
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, to)
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=tmp_path / "source",
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = wheel.namelist()
    assert "autoseg/__main__.py" in names
    assert any(name.startswith("autoseg/plans/") for name in names)
    assert "USER 65532" in TEXT


# Mounts of its own: a read-only root, a writable output folder, a read-only /dev/shm. The user has
# no name, no home folder, and no right to write; it may read, as Python may be in /root.
CONTAINER = """
set -e
mount --bind {work}/out {work}/out
mount -t tmpfs -o mode=1777,size=64m none {work}/tmp
mount -t tmpfs -o size=64k,ro none /dev/shm
mount -o remount,ro,bind /
if touch {work}/in/probe 2>/dev/null; then echo "the disk is not /" >&2; exit 77; fi
exec setpriv --reuid=4711 --regid=4712 --clear-groups \\
    --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \\
    env -i PATH=/usr/bin:/bin PYTHONPATH={root} TMPDIR={work}/tmp \\
    {python} -m autoseg predict -m {work}/model -i {work}/in -o {work}/out --device cpu
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts take root")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is missing")
def test_any_user_predicts_on_a_read_only_disk(tmp_path: Path) -> None:
    save_model(plan_of(), tmp_path / "model", "0")
    for name in ("in", "out", "tmp"):
        (tmp_path / name).mkdir()
    write_scan(tmp_path / "in" / "a.nii.gz", np.arange(16**3, dtype=np.int16).reshape(16, 16, 16))
    os.chown(tmp_path / "out", 4711, 4712)
    text = CONTAINER.format(work=tmp_path, root=ROOT, python=sys.executable)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", text], capture_output=True, text=True, check=False
    )
    if done.returncode == 77 or "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "out" / "a.nii.gz"
    assert (made.stat().st_uid, made.stat().st_gid) == (4711, 4712)
