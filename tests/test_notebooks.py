"""The notebooks of `examples` run from top to bottom, alone, and tell what they told before."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import pytest

from tests.notebooks import FOLDER, NAMES, executed, path_of, read, told

MOST_BYTES = 100_000
needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="openai comes with the extra `clients`"
)


def test_every_notebook_is_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_openai if name == "server_with_openai" else ())
        for name in NAMES
    ],
)
def test_a_notebook_runs_and_tells_what_it_told_before(name: str, tmp_path: Path) -> None:
    notebook = executed(name, tmp_path)
    streams = [o.name for cell in notebook.cells for o in cell.get("outputs", ()) if "name" in o]
    assert set(streams) <= {"stdout"}
    if mx.default_device() == mx.cpu:  # elsewhere numbers have other types, and a name of their own
        assert told(notebook) == told(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_says_what_it_is_for(name: str) -> None:
    notebook = read(name)
    first, *rest = notebook.cells
    assert first.cell_type == "markdown"
    title, _, purpose = first.source.partition("\n\n")
    assert title.startswith("# ")
    assert purpose.count(".") >= 2
    assert path_of(name).stat().st_size < MOST_BYTES
    counts = [cell.execution_count for cell in rest if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_the_notebook_about_boxes_shows_one() -> None:
    shown = [o for c in read("boxes").cells for o in c.get("outputs", ()) if "data" in o]
    assert any("image/png" in output.data for output in shown)
