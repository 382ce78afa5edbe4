"""What a source is called: its name and commit on the Hub, where it lies in the Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # a name on the Hub
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHE_PREFIX = "models--"  # of a repository's folder in the Hub's cache


def source_revision(folder: Path) -> str | None:
    """The commit of a folder in the Hub's cache, or None of any other folder."""
    folder = folder.resolve()
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def source_repository(folder: Path) -> str | None:
    """The Hub name of a folder in the Hub's cache, or None of any other folder."""
    if source_revision(folder) is None:
        return None
    name = folder.resolve().parent.parent.name
    repository = name.removeprefix(_CACHE_PREFIX).replace("--", "/")
    is_cached = name.startswith(_CACHE_PREFIX) and REPOSITORY.fullmatch(repository)
    return repository if is_cached else None


def source_name(name: str, folder: Path) -> str:
    """What a source is called in public: its Hub name, or the last part of its path.

    Args:
        name: What it was asked for by.
        folder: Where it was found.
    """
    if Path(name).expanduser().exists():
        return source_repository(folder) or folder.resolve().name
    return name
