"""What a person sees: lines in a log, bars on a terminal, nothing when quiet."""

from __future__ import annotations

import io

from safear_edit.progress import HEARTBEAT, Progress, Steps, mode_for


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_mode() -> None:
    assert mode_for(_Terminal(), quiet=False) == "live"
    assert mode_for(io.StringIO(), quiet=False) == "plain"
    assert mode_for(_Terminal(), quiet=True) == "silent"


def test_a_log_gets_the_first_the_last_and_a_heartbeat() -> None:
    now, stream = [0.0], io.StringIO()
    with Progress("plain", stream, clock=lambda: now[0]) as progress:
        for done in range(1, 101):
            now[0] += HEARTBEAT / 10
            progress("edit", done, 100, f"loss {done}")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("edit: 1/100")
    assert lines[-1].startswith("edit: 100/100") and lines[-1].endswith("loss 100")
    assert 10 <= len(lines) <= 12
    assert "\x1b" not in stream.getvalue()


def test_silent_prints_nothing() -> None:
    stream = io.StringIO()
    with Progress("silent", stream) as progress:
        progress("edit", 1, 2)
        progress.say("hello")
    assert stream.getvalue() == ""


def test_live_bars_name_their_stages() -> None:
    stream = _Terminal()
    with Progress("live", stream) as progress:
        progress("pairs", 3, 3, "kept 2 [of 3]")
        progress.say("between [the] bars")
    assert "pairs" in stream.getvalue() and "between [the] bars" in stream.getvalue()


def test_steps_are_counted_with_one_estimate_for_all() -> None:
    said: list[str] = []
    times = iter([0.0, 0.0, 90.0, 600.0])
    begin = Steps(said.append, 3, 4.6, clock=lambda: next(times))
    begin("construct and edit")
    begin("report")
    begin("release")
    assert said == [
        "step 1 of 3: construct and edit, 0.0 of about 5 minutes",
        "step 2 of 3: report, 1.5 of about 5 minutes",
        "step 3 of 3: release, after 10.0 minutes, where 5 were predicted for all",
    ]
    Steps(said.append, 1, 0.0, clock=lambda: 0.0)("removed")
    assert said[-1] == "step 1 of 1: removed, after 0.0 minutes", "nobody predicted anything"
