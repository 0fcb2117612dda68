from __future__ import annotations

from pathlib import Path

import check_portable
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "import signal\nnumber = signal.SIGHUP",
        "import fcntl",
        "from resource import getrusage",
        "from pathlib import Path\npath = Path('/proc/self')",
        "import os\ndef count():\n    return len(os.sched_getaffinity(0))",
        "from pathlib import Path\ntext = Path('a').read_text()",
        "from pathlib import Path\nwith Path('a').open('w') as file:\n    pass",
    ],
)
def test_what_some_systems_lack_is_found(source: str) -> None:
    assert len(list(check_portable.problems(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nif hasattr(os, 'fork'):\n    os.fork()",
        "import os\ndef count():\n    if os.name != 'nt':\n        return os.getuid()",
        "import os\n# portable: Linux only, as the caller checks\nos.getuid()",
        "import signal\nnumber = signal.SIGTERM",
        "from pathlib import Path\ntext = Path('a').read_text(encoding='utf-8')",
        "from pathlib import Path\nwith Path('a').open('rb') as file:\n    pass",
    ],
)
def test_what_is_everywhere_or_tested_passes(source: str) -> None:
    assert list(check_portable.problems(source)) == []


def test_the_package_is_portable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["check_portable.py", str(ROOT / "autoseg")])
    assert check_portable.main() == 0, capsys.readouterr().out
