"""The notebooks of `examples`: how they are run, and what of their outputs has to stay the same.

`python -m tests.notebooks [NAME ...]` runs them and records their outputs in place.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.command_lines import ROOT
from tests.jupyter_kernel import environment

FOLDER = ROOT / "examples"
NAMES = (
    "first_answer",
    "streaming",
    "two_pictures",
    "boxes",
    "quantize_and_compare",
    "folder_to_table",
    "server_with_openai",
)
CELL_S = 60  # that a cell may take, in seconds
# What another run or machine changes: figures, times, ports, addresses, and the bytes of pictures.
_CHANGES = (
    (re.compile(r"\d+\.\d+(e-\d+)?( [kMG]B)?"), "#"),
    (re.compile(r"base64,[\w+/=]+"), "base64,"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1"),
    (re.compile(r"0x[0-9a-f]+"), "0x"),
    (re.compile(r"image/(png|jpeg);"), "image/;"),
    (re.compile(r"[ \t]+"), " "),
)


def path_of(name: str) -> Path:
    """A notebook's file."""
    return FOLDER / f"{name}.ipynb"


def read(name: str) -> NotebookNode:
    """A notebook as it is committed."""
    notebook: NotebookNode = nbformat.read(path_of(name), as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def executed(name: str, folder: Path) -> NotebookNode:
    """A notebook after a run from top to bottom in a kernel of its own.

    Args:
        name: The notebook's.
        folder: Where the kernel may write.
    """
    notebook = read(name)
    client = NotebookClient(
        notebook,
        timeout=CELL_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    manager = client.create_kernel_manager()
    manager.transport = "ipc"
    manager.connection_file = str(folder / "kernel.json")
    client.execute(env=environment(folder))
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            _keep_one_form(output.get("data", {}))
    return notebook


def _keep_one_form(data: dict[str, Any]) -> None:
    """Of an output's forms, leave those away that no viewer of notebooks prefers."""
    if "text/markdown" in data:
        data.pop("text/plain", None)
    if "image/png" in data:
        data.pop("image/jpeg", None)


def told(notebook: NotebookNode) -> list[list[str]]:
    """What each cell of code told in words, without what changes from run to run."""
    return [
        [stable(text) for text in texts_of(cell)]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def texts_of(cell: NotebookNode) -> list[str]:
    """Outputs of a cell that are text."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(f"{output.name}: {output.text}")
        else:
            data = output.get("data", {})
            texts.append("\n".join(str(data[k]) for k in sorted(data) if k.startswith("text/")))
            texts[-1] += "\n" + " ".join(k for k in sorted(data) if k.startswith("image/"))
    return texts


def stable(text: str) -> str:
    """Text without what changes from run to run."""
    for pattern, constant in _CHANGES:
        text = pattern.sub(constant, text)
    return text


def main() -> None:
    """Record outputs."""
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(name, Path(folder))
        nbformat.write(notebook, path_of(name))  # type: ignore[no-untyped-call]
        print(name, path_of(name).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
