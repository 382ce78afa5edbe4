"""Variables of the environment that change what happens."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

from mlx_qwenvl.doctoring.finding import Finding

PREFIX = "MLX_QWENVL_"
KEY = "MLX_QWENVL_API_KEY"
KNOWN = (
    KEY,
    "MLX_QWENVL_DISK_CACHE",
    "MLX_QWENVL_KERNELS",
    "MLX_QWENVL_MEMORY_LIMIT",
    "MLX_QWENVL_MODEL",
    "MLX_QWENVL_OPENBLAS",
    "MLX_QWENVL_PAD_MLP",
    "MLX_QWENVL_RANK_ADDRESS",
    "MLX_QWENVL_RANK_SILENCE",
)
# Of others; some may hold secrets, so that only their being set is told.
OTHERS = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"),
    *("HTTPS_PROXY", "HTTP_PROXY", "MLX_DISABLE_COMPILE", "MLX_ENABLE_TF32", "XDG_CACHE_HOME"),
    "XDG_CONFIG_HOME",
)


def findings() -> Iterator[Finding]:
    """Our own variables with their values, and the names of others that are set."""
    for name in sorted(os.environ):
        if not name.startswith(PREFIX):
            continue
        if name in KNOWN:
            yield Finding(name, "set" if name == KEY else repr(os.environ[name]))
        else:
            near = difflib.get_close_matches(name, KNOWN, 1)
            advice = f"is {near[0]} meant?" if near else "unset it"
            yield Finding(name, "set, but nobody reads it", "note", advice)
    others = [name for name in OTHERS if os.environ.get(name)]
    yield Finding("others", f"{', '.join(others) or 'none'} set", data=others)
