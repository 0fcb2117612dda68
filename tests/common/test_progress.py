from __future__ import annotations

import io
import sys
import time
import types

import pytest

from autoseg.common import progress as progress_module
from autoseg.common.progress import (
    by_axis,
    counted,
    in_fine_words,
    in_notebook,
    in_words,
    listed,
    nearest,
    progress,
    say,
)


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (8.2, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (11_400, "3 h 10 min"),
        (172_799, "47 h 59 min"),
        (360_000, "4 days 4 h"),
    ],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0349, "0.035 s"), (9.94, "9.9 s"), (10.0, "10 s"), (75, "1 min 15 s")]
)
def test_short_times_have_two_digits(seconds: float, words: str) -> None:
    assert in_fine_words(seconds) == words


def test_say_leaves_standard_output_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    say("Größe: 3 µm")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Größe: 3 µm\n")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_are_rare_and_the_last_step_always_has_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("reading", 6) as bar:
        for _ in range(6):
            clock.seconds += 4
            bar.advance()
    assert lines(capsys) == ["reading: 3/6  12 s left", "reading: 6/6"]


def test_lines_tell_the_note_and_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 10, every_seconds=0) as bar:
        clock.seconds += 20
        bar.advance("loss 0.5")
    assert lines(capsys) == ["training: 1/10  loss 0.5  3 min 00 s left"]


def test_steps_done_before_do_not_speed_up_the_guess(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 10, done=8, every_seconds=0) as bar:
        clock.seconds += 7
        bar.advance()
    assert lines(capsys) == ["training: 9/10  7 s left"]


def test_a_slow_start_is_soon_forgotten(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 100, every_seconds=0) as bar:
        for seconds in (60, 2, 2, 2):
            clock.seconds += seconds
            bar.advance()
    lefts = [line.split("  ")[1] for line in lines(capsys)]
    assert lefts == ["1 h 39 min left", "3 min 16 s left", "3 min 14 s left", "3 min 12 s left"]


def test_the_number_of_steps_may_be_corrected(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 10, every_seconds=0) as bar:
        clock.seconds += 1
        bar.advance(total=3)
        clock.seconds += 1
        bar.advance()
    assert lines(capsys) == ["training: 1/3  2 s left", "training: 2/3  1 s left"]


def test_signs_of_life_come_where_nothing_else_does_and_become_rarer(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    with progress("training", 10) as bar:
        for second in range(1, 301):
            clock.seconds += 1
            bar.tell("step")
            if lines(capsys) == ["training: step"]:
                told.append(second)
            if second == 200:
                bar.advance()
                assert lines(capsys)
    assert told == [10, 30, 70, 150, 280]


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 0):
        pass
    assert lines(capsys) == []


def test_a_terminal_gets_a_bar_with_the_note_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress("reading", 5, done=2) as bar:
        bar.advance()
        bar.advance("case [red] 7", total=4)
        bar.tell("amid [blue] 8")
    shown = terminal.getvalue()
    assert "reading" in shown
    assert "4/4" in shown
    assert "amid [blue] 8" in shown
    assert "case [red] 7" in shown  # not taken for a colour


def test_a_long_note_takes_no_room_from_the_bar_and_slow_steps_have_their_time_left(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    note = "loss 0.512  validation 0.623  Dice 0.750 (left lung 0.95, right lung 0.94)  rate 1e-03"
    with progress("training fold 0", 1000, done=3) as bar:
        for _ in range(3):
            clock.seconds += 360
            bar.advance(note)
    shown = terminal.getvalue()
    last = shown[shown.rindex("training fold 0") :]
    assert "6/1000" in last.splitlines()[0]
    assert "4 days 3 h left" in last.splitlines()[0]
    assert note.split()[-1] in last  # the end of the note, on a line below


def test_each_epoch_keeps_its_line_above_the_bar_and_the_best_one_is_bold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with progress("training", 3, every_seconds=0) as bar:
        for note in ("loss 0.5  best", "loss 0.7", "loss 0.6"):
            bar.advance(note)
            bar.tell("step 3 of 20")
    lines = [line.strip("\r") for line in terminal.getvalue().split("\n")]
    kept = [line for line in lines if "loss" in line]
    assert len(kept) == 3  # once each
    assert [line.count("\x1b[1m") for line in kept] == [1, 0, 0]
    with progress("reading", 2) as bar:  # names of cases do not stay
        bar.advance("case_1")
        bar.advance("case_2")
    assert "1/2  case_1" not in terminal.getvalue()


def test_a_notebook_gets_a_bar_where_it_has_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = type("ZMQInteractiveShell", (), {})()
    module = types.ModuleType("IPython")
    monkeypatch.setattr(module, "get_ipython", lambda: kernel, raising=False)
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(progress_module, "find_spec", lambda name: name == "ipywidgets" or None)
    assert in_notebook()
    monkeypatch.setattr(progress_module, "find_spec", lambda name: None)
    assert not in_notebook()


@pytest.mark.parametrize(
    ("given", "names", "end"),
    [
        ("COVID", ["Task001_COVID", "Task002_Heart"], "; did you mean Task001_COVID?"),
        ("hart", ["Task001_COVID", "Task002_Heart"], "; did you mean Task002_Heart?"),
        ("heart", ["Task2_Heart", "Task3_HeartMR"], "; did you mean Task2_Heart or Task3_HeartMR?"),
        ("--time-buget", ["--time-budget", "--debug"], "; did you mean --time-budget?"),
        ("zebra", ["plan", "train"], ""),
        ("", ["plan"], ""),
    ],
)
def test_nearest_names(given: str, names: list[str], end: str) -> None:
    assert nearest(given, names) == end


def test_an_error_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError, match="broken"), progress("reading", 5):
        raise ValueError("broken")
    with progress("again", 1) as bar:  # rich allows one live bar at a time
        bar.advance()
    assert "1/1" in terminal.getvalue()


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "case", "0 cases"),
        (1, "case", "1 case"),
        (21, "epoch", "21 epochs"),
        (1, "patch", "1 patch"),
        (2, "patch", "2 patches"),
        (3, "class", "3 classes"),
    ],
)
def test_counted(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_listed() -> None:
    assert listed("fold", iter([2])) == "fold 2"
    assert listed("fold", ("0", "all")) == "folds 0, all"


def test_values_by_axis() -> None:
    assert by_axis((160, 160, 80)) == "160 x 160 x 80"
    assert by_axis((1.5811, 2.0), ".3g") == "1.58 x 2"
