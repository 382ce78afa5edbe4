"""Our server, which on SIGUSR1 writes what it holds into a file; the soak's way to look inside.

    python -m benchmarks.server_load.watched REPORT SERVER_OPTION...

What the stores keep on purpose is let go first, and freed memory is given back to the system, so
that what is left is what is held.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from mlx_qwenvl.engine.stores import Stores
from server.__main__ import main

# isort: split
import mlx.core as mx


def report() -> dict[str, object]:
    """What this process holds."""
    stores = [thing for thing in gc.get_objects() if isinstance(thing, Stores)]
    kept = sum(store.nbytes for store in stores)
    for store in stores:
        store.make_room(2**62)
    gc.collect()
    mx.clear_cache()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)
    things = gc.get_objects()
    return {
        "stores_bytes": kept,
        "active_bytes": mx.get_active_memory(),
        "tasks": sum(isinstance(x, asyncio.Task) and not x.done() for x in things),
        "python_threads": sorted(thread.name for thread in threading.enumerate()),
        "objects": len(things),
    }


def watch(place: Path) -> None:
    """Write a report whenever this process is told to."""

    def note(_: int, __: FrameType | None) -> None:
        draft = place.with_suffix(".part")
        draft.write_text(json.dumps(report()), encoding="utf-8")
        os.replace(draft, place)

    signal.signal(signal.SIGUSR1, note)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
