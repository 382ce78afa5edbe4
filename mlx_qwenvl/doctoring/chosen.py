"""The model that answers when none is named: is it here, is it whole, does it fit?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.doctoring.probe import Probe
from mlx_qwenvl.sizes import in_bytes
from mlx_qwenvl.weights.choice import VARIABLE, default_model, settings_file
from mlx_qwenvl.weights.resolve import DEMO, local_path, repository_of


def choice() -> Iterator[Finding]:
    """Its name, and who chose it."""
    name = default_model()
    if os.environ.get(VARIABLE):
        yield Finding("chosen", f"{name} (${VARIABLE})", data=name)
    elif settings_file().exists():
        yield Finding("chosen", f"{name} (mlx-qwenvl use)", data=name)
    else:
        value = f"none, so the embedded {DEMO} answers; `mlx-qwenvl use 2b` takes a real one"
        yield Finding("chosen", value, data=name)


def state(probed: Probe) -> Iterator[Finding]:
    """Where it is, whether its files hang together, and what it needs of memory."""
    # Imported here: these need MLX, which was tried before.
    from mlx_qwenvl.facts import backend_here, find_facts
    from mlx_qwenvl.weights.hub import cached

    name = default_model()
    folder = local_path(name) or cached(repository_of(name))
    if folder is None:
        advice = f"mlx-qwenvl use {name} downloads it"
        yield Finding("folder", "not downloaded, or not all of it", "note", advice)
        return
    facts = find_facts(str(folder))  # of the folder: the Hub is not asked
    size = sum(facts.weight_files.values())
    yield Finding("folder", f"{_shown(folder, name)}, {in_bytes(size)} of weights", data=size)
    needed = facts.memory(backend_here()).total
    value = f"{in_bytes(needed)} with one picture and {facts.context} tokens"
    if probed.limit is not None and needed > probed.limit:
        advice = "take a smaller or quantized one, or fewer pixels (docs/models.md)"
        yield Finding("needs", f"{value}; it does not fit", "note", advice, needed)
    else:
        yield Finding("needs", value, data=needed)


def _shown(folder: Path, name: str) -> str:
    return "inside this package" if name == DEMO else str(folder)
