"""Which model answers when none is named.

`$MLX_QWENVL_MODEL`, else the one chosen with `mlx-qwenvl use NAME`, else the embedded `demo`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mlx_qwenvl.errors import CheckpointError, QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.resolve import DEMO
from mlx_qwenvl.whole_file import written_whole

VARIABLE = "MLX_QWENVL_MODEL"


def settings_file() -> Path:
    """Where the choice is kept: `mlx-qwenvl/settings.json` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "mlx-qwenvl" / "settings.json"


def default_model() -> str:
    """Name of the model to use when none is given.

    Raises:
        CheckpointError: The settings file is damaged.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return named
    file = settings_file()
    if not file.exists():
        return DEMO
    try:
        model = read_json(file).get("model")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; `mlx-qwenvl use NAME` writes it anew") from None
    if not isinstance(model, str) or not model:
        raise CheckpointError(f"{file} names no model; run `mlx-qwenvl use NAME`")
    return model


def choose_model(name: str) -> Path:
    """Keep a name as the default and give the file it was written to.

    Raises:
        QwenVLError: The file cannot be written.
    """
    file = settings_file()
    try:
        settings = read_json(file)
    except CheckpointError:  # there is none yet, or it is damaged and made anew
        settings = {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as draft:
            draft.write(json.dumps(settings | {"model": name}, indent=2).encode())
    except OSError as error:
        raise QwenVLError(f"{file} cannot be written: {error.strerror}") from None
    return file
