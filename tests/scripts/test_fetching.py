from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fetching import TRIES, Remote, checksum, fetch, fetch_json, has_checksum

from autoseg.common.errors import RunError
from tests.scripts.serving import Answer, Web

SCRIPTS = Path(__file__).parents[2] / "scripts"
CONTENT = random.Random(0).randbytes(100_000)
HALF = 50_000


def no_wait(seconds: float) -> None:
    pass


def remote_of(web: Web, content: bytes = CONTENT, *answers: Answer) -> Remote:
    web.files["/file.zip"] = content
    web.next_answers["/file.zip"] = list(answers)
    made = f"md5:{hashlib.md5(content).hexdigest()}"
    return Remote(web.url("/file.zip"), len(content), made)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_fetched_once(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web)
    fetch(remote, tmp_path / "file.zip", no_wait)
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert names_in(tmp_path) == {"file.zip"}
    assert web.ranges("/file.zip") == [None]


def test_an_empty_file(web: Web, tmp_path: Path) -> None:
    fetch(remote_of(web, b""), tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == b""


def test_a_broken_connection_is_continued_where_it_broke(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(break_after=HALF), Answer(break_after=1000))
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]


def test_without_a_mark_the_rest_is_asked_for_all_the_same(web: Web, tmp_path: Path) -> None:
    web.marks["/file.zip"] = None
    fetch(remote_of(web, CONTENT, Answer(break_after=HALF)), tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-"]


def test_a_server_that_ignores_ranges(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(break_after=HALF), Answer(ignore_range=True))
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_begun_anew(web: Web, tmp_path: Path) -> None:
    old = bytes(len(CONTENT))
    answers = [Answer(break_after=HALF, body=old)]
    fetch(remote_of(web, CONTENT, *answers), tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-"]  # If-Range: the whole came back


def test_another_range_than_the_one_asked_for(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(break_after=HALF), Answer(shift=10))
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-", None]


def test_a_range_that_the_server_does_not_have(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(break_after=HALF), Answer(status=416))
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-", None]


def test_a_wrong_checksum_once_is_loaded_again(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(body=bytes(len(CONTENT))))
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_checksum_wrong_twice_is_told_and_nothing_is_kept(web: Web, tmp_path: Path) -> None:
    wrong = bytes(len(CONTENT))
    remote = remote_of(web, CONTENT, Answer(body=wrong), Answer(body=wrong))
    found = hashlib.md5(wrong).hexdigest()
    with pytest.raises(RunError, match=f"checksum is md5:{found}, not {remote.checksum}, twice"):
        fetch(remote, tmp_path / "file.zip", no_wait)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("length", [HALF, 2 * len(CONTENT)])
def test_a_wrong_length_is_never_taken(web: Web, tmp_path: Path, length: int) -> None:
    remote = remote_of(web, CONTENT, *[Answer(body=bytes(length))] * TRIES)
    with pytest.raises(RunError, match=f"{length:,} bytes, not 100,000"):
        fetch(remote, tmp_path / "file.zip", no_wait)
    assert names_in(tmp_path) == set()


def test_what_came_is_kept_for_the_next_call(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(break_after=HALF), *[Answer(status=503)] * (TRIES - 1))
    with pytest.raises(RunError, match="50,000 bytes are kept"):
        fetch(remote, tmp_path / "file.zip", no_wait)
    assert "file.zip" not in names_in(tmp_path)
    fetch(remote, tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, *[f"bytes={HALF}-"] * TRIES]


def test_tries_are_bounded_though_each_begins_well(web: Web, tmp_path: Path) -> None:
    answers = [Answer(break_after=HALF, ignore_range=True)] * 100
    with pytest.raises(RunError, match=f"broke off at 50,000 of 100,000 bytes .{TRIES} times"):
        fetch(remote_of(web, CONTENT, *answers), tmp_path / "file.zip", no_wait)
    assert len(web.requests) == TRIES


def test_more_breaks_than_tries_as_long_as_something_comes(web: Web, tmp_path: Path) -> None:
    breaks = [Answer(break_after=9_000)] * 11
    fetch(remote_of(web, CONTENT, *breaks), tmp_path / "file.zip", no_wait)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert len(web.requests) == 12 > TRIES


def test_a_busy_server_is_asked_again_after_the_wait_that_it_wants(
    web: Web, tmp_path: Path
) -> None:
    busy = [Answer(status=503), Answer(status=503)]
    told = [Answer(status=429, headers={"Retry-After": seconds}) for seconds in ("7", "100000")]
    waited: list[float] = []
    fetch(remote_of(web, CONTENT, *busy, *told), tmp_path / "file.zip", waited.append)
    assert waited == [1.0, 2.0, 7.0, 60.0]


def test_a_file_that_is_not_there_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    remote = Remote(web.url("/nothing.zip"), 1, "md5:0")
    with pytest.raises(RunError, match=r"nothing\.zip: .* 404"):
        fetch(remote, tmp_path / "file.zip", no_wait)
    assert len(web.requests) == 1


def test_no_server(web: Web, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"no connection .* .{TRIES} times in a row"):
        fetch(Remote("http://127.0.0.1:1/file.zip", 1, "md5:0"), tmp_path / "file.zip", no_wait)


def test_addresses_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    remote = Remote((tmp_path / "secret").as_uri(), len(CONTENT), checksum_of_content())
    with pytest.raises(RunError, match="file:"):
        fetch(remote, tmp_path / "file.zip", no_wait)


def test_json(web: Web) -> None:
    web.files |= {"/answer": b'{"a": 1}', "/page": b"<html>"}
    web.next_answers["/answer"] = [Answer(status=502), Answer(break_after=3)]
    assert fetch_json(web.url("/answer"), no_wait) == {"a": 1}
    with pytest.raises(RunError, match="not JSON: b'<html>'"):
        fetch_json(web.url("/page"), no_wait)


def test_a_killed_run_is_continued(web: Web, tmp_path: Path) -> None:
    remote = remote_of(web, CONTENT, Answer(hang_after=HALF))
    path = tmp_path / "file.zip"
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); from pathlib import Path; "
        f"from fetching import Remote, fetch; fetch({remote!r}, Path({str(path)!r}))"
    )
    part = tmp_path / "file.zip.part"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not (part.is_file() and part.stat().st_size == HALF):
            time.sleep(0.02)
        killed.kill()
    assert not path.exists()
    fetch(remote, path, no_wait)
    assert path.read_bytes() == CONTENT
    assert web.ranges("/file.zip") == [None, f"bytes={HALF}-"]


def checksum_of_content() -> str:
    return f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not has_checksum(path, checksum_of_content())
    path.write_bytes(CONTENT)
    assert checksum(path, "sha256") == checksum_of_content()
    assert has_checksum(path, checksum_of_content().upper().replace("SHA256", "sha256"))
    assert not has_checksum(path, "md5:0")
