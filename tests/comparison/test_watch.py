"""Where the time of a comparison goes, told by a clock that is set by hand."""

from __future__ import annotations

import pytest

from cspine.cli.screen import show_stages
from cspine.core.progress import Silent, StageClock


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, stage: str, total: int) -> None:
        self.calls.append(("start", stage, total))

    def advance(self, done: int, total: int, note: str = "") -> None:
        self.calls.append(("advance", done, total, note))

    def finish(self, note: str = "") -> None:
        self.calls.append(("finish", note))


def test_a_stage_lasts_until_its_finish_or_the_next_start() -> None:
    now = [0.0]
    heard = Heard()
    clock = StageClock(heard, clock=lambda: now[0])
    assert clock.seconds == {}
    clock.start("read", 2)
    now[0] = 1.0
    clock.advance(1, 2, "half")
    now[0] = 2.0
    clock.finish("done")
    now[0] = 10.0  # between two stages
    clock.start("choose", 0)
    now[0] = 13.0
    clock.start("train", 5)
    now[0] = 20.0
    clock.finish()
    clock.start("read", 1)
    now[0] = 20.5
    assert clock.seconds == {"read": 2.5, "choose": 3.0, "train": 7.0}
    now[0] = 21.0
    assert clock.seconds["read"] == 3.0
    assert heard.calls == [
        ("start", "read", 2),
        ("advance", 1, 2, "half"),
        ("finish", "done"),
        ("start", "choose", 0),
        ("start", "train", 5),
        ("finish", ""),
        ("start", "read", 1),
    ]


def test_the_terminal_shows_stages_of_a_second_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    show_stages({"Reading slices": 0.4, "Training [a]": 1234.5}, 1300.0)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "Training [a] 1,234.5 s" in lines
    assert "all of it, before the report is drawn 1,300.0 s" in lines
    assert not any("Reading" in line for line in lines)
    show_stages({"Reading slices": 0.4}, 0.5)
    assert capsys.readouterr().out == ""
