"""Folders: settings, the Hub's cache, the disk cache, and the room that is left."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.sizes import in_bytes
from mlx_qwenvl.weights.choice import settings_file

LITTLE = 6 * 10**9  # bytes; the 7B in 4 bits would not fit


def settings() -> Iterator[Finding]:
    """Where choices are kept, and whether they can be."""
    file = settings_file()
    place = _existing(file)
    value = str(file) if file.exists() else f"{file}, not there yet"
    is_sound = place == file or place.is_dir()  # not a file where a folder should be
    if is_sound and os.access(place, os.W_OK):
        yield Finding("settings", value)
    else:
        yield Finding("settings", value, "note", f"{place} cannot be written to; make it yours")


def hub_cache() -> Iterator[Finding]:
    """Hugging Face's cache of downloaded models."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    folder = Path(constants.HF_HUB_CACHE)
    try:
        found = scan_cache_dir(folder)
    except CacheNotFound:
        yield Finding("Hub's cache", f"{folder}, nothing there yet", data=0)
        return
    models = sum(repository.repo_type == "model" for repository in found.repos)
    value = f"{folder}, {models} models, {in_bytes(found.size_on_disk)}"
    yield Finding("Hub's cache", value, data=found.size_on_disk)


def disk_cache() -> Iterator[Finding]:
    """Our own cache of pictures and prompts, which is off unless asked for."""
    # Imported here: these need MLX, which was tried before.
    from mlx_qwenvl.engine.disk_tier import FOLDER, SUFFIX
    from mlx_qwenvl.engine.stores import disk_folder

    asked, parent = disk_folder(None), disk_folder(True)
    assert parent is not None  # True always means some folder
    folder = parent.expanduser() / FOLDER
    use = "on" if asked is not None else "off unless --disk-cache is given"
    if not os.path.lexists(folder):
        yield Finding("disk cache", f"{use}; {folder}, nothing there yet", data=0)
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        advice = "remove it, or name another with MLX_QWENVL_DISK_CACHE"
        yield Finding("disk cache", f"{folder} is no folder of yours", "broken", advice)
        return
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)]
    value = f"{use}; {folder}, {len(sizes)} files, {in_bytes(sum(sizes))}"
    yield Finding("disk cache", value, data=sum(sizes))


def room() -> Iterator[Finding]:
    """Free bytes where models are downloaded to."""
    from huggingface_hub import constants

    free = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
    value = f"{in_bytes(free)} free for models"
    if free < LITTLE:
        advice = "make room, or point HF_HOME to a larger disk"
        yield Finding("disk", value, "note", advice, free)
    else:
        yield Finding("disk", value, data=free)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
