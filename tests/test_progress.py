"""Progress: quiet, on a terminal, elsewhere."""

from __future__ import annotations

import io

from bmpeft.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_quiet_writes_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(quiet=True, stream=stream)
    with progress.task("training", total=2) as task:
        task.advance(1, loss=0.5)
        progress.line("a line")
    assert stream.getvalue() == ""


def test_elsewhere_lines_are_rare_and_tell_figures_and_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    with progress.task("training", total=1200) as task:
        for _ in range(30):
            clock.now += 1.0
            task.advance(20, loss=0.71239, tokens_per_second=5120.4)
    assert stream.getvalue().splitlines() == [
        "training 200/1,200  loss 0.7124  5,120 tokens/s  0:50 left",
        "training 400/1,200  loss 0.7124  5,120 tokens/s  0:40 left",
        "training 600/1,200  loss 0.7124  5,120 tokens/s  0:30 left",
    ]


def test_short_work_prints_nothing_elsewhere() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, clock=Clock()).task("validating", total=3) as task:
        task.advance(3)
    assert stream.getvalue() == ""


def test_figures_stay_until_there_are_new_ones() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock).task("training", total=4) as task:
        task.advance(0, loss=2.0)
        clock.now = 20.0
        task.advance(1)
    assert stream.getvalue() == "training 1/4  loss 2  1:00 left\n"


def test_a_terminal_gets_bars_which_may_be_nested_and_are_gone_afterwards() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.task("training", total=2) as outer:
        outer.advance(1, loss=0.5)
        with progress.task("validating", total=2) as inner:
            inner.advance(2)
            progress.line("[a line] with brackets")
    progress.line("afterwards")
    shown = stream.getvalue()
    for text in ("training", "validating", "loss 0.5", "[a line] with brackets"):
        assert text in shown
    assert shown.endswith("afterwards\n")
    with progress.task("again", total=1) as task:
        task.advance(1)
