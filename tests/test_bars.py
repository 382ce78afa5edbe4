"""Bars: asked for, after a moment, on stderr, and gone when the work is."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest

from mlx_qwenvl import QwenVL, bars, load
from tests.command_lines import SHAPES, run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "DELAY_S", 0)


@pytest.mark.usefixtures("at_once")
def test_loading_and_reading_show_bars_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    vlm = load("demo", progress=True)
    assert "loading" in capsys.readouterr().err
    vlm.generate("What?", images=[SHAPES], max_tokens=2)
    assert "reading" in capsys.readouterr().err
    vlm.chat().ask("What?", max_tokens=2)
    printed = capsys.readouterr()
    assert "reading" in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("at_once")
def test_nothing_is_shown_where_nobody_asked_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    vlm = load("demo")
    vlm.generate("What?", images=[SHAPES], max_tokens=2)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("at_once")
def test_who_counts_for_himself_sees_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    vlm, heard = load("demo", progress=True), list[tuple[int, int]]()
    capsys.readouterr()
    vlm.generate("What?", max_tokens=2, on_prefill=lambda done, total: heard.append((done, total)))
    assert heard
    assert capsys.readouterr().err == ""


def test_what_is_done_in_a_moment_needs_no_bar(demo: QwenVL) -> None:
    program = f"""
from mlx_qwenvl import load
load("demo", progress=True).generate("What?", images=[{str(SHAPES)!r}], max_tokens=2)
"""
    assert run("-W", "error", "-c", program).err == ""


def test_a_notebook_without_widgets_is_not_warned_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        class ZMQInteractiveShell:
            pass

    class IPython:
        @staticmethod
        def get_ipython() -> Any:
            return Shell.ZMQInteractiveShell()

    for name in [name for name in sys.modules if name.startswith("tqdm.auto")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", IPython)
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    import tqdm.notebook

    monkeypatch.setattr(tqdm.notebook, "IProgress", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert issubclass(bars.choose_tqdm(), tqdm.std.tqdm)
    assert [str(warning.message) for warning in caught] == []
