"""The unfinished output: a hidden sibling of the output, locked while somebody writes to it.

It has no `config.json` until the end, so nothing loads it, and becomes the output by being renamed.
When work is broken off it stays, if anything in it is worth keeping, and can be resumed by whoever
wants the same from the same source.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.sizes import in_bytes

ORDER_FILE = "order.json"  # what was asked for; resuming needs the same
LEARNED = "learned"  # folder in a draft for weights that were learned, before they are written


class Unfinished(QwenVLError):
    """An earlier conversion to this output was broken off."""


def draft_folder(output: Path) -> Path:
    """Where an output is written before it is finished."""
    return output.with_name(f".{output.name}.partial")


@contextmanager
def drafting(
    output: Path, order: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[Path]:
    """Hold the draft of an output for as long as the block lasts.

    Args:
        output: The output.
        order: All that decides what is written, for JSON.
        resume: Go on with a draft that is there.
        overwrite: Throw away a draft that is there.

    Raises:
        Unfinished: A draft is there, and neither was asked for, or it is of another order.
        QwenVLError: Somebody else is writing to it.
    """
    draft = draft_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft.mkdir(exist_ok=True)
    lock = os.open(draft, os.O_RDONLY)
    try:
        _lock(lock, draft, output)
        _take_over(draft, output, order, resume=resume, overwrite=overwrite)
        try:
            # Only once: on a full disk a file that is written anew may come out empty.
            if not (draft / ORDER_FILE).exists():
                (draft / ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
            yield draft
        except BaseException as error:
            is_kept, advice = _is_worth_keeping(draft), how_to_go_on(output)
            if not is_kept:
                shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise QwenVLError(f"no space is left for {output}; make some; {advice}") from None
            if is_kept and isinstance(error, OSError):
                place = f": {error.filename}" if error.filename else ""
                raise QwenVLError(f"{error.strerror or error}{place}; {advice}") from None
            if is_kept and isinstance(error, QwenVLError):
                raise type(error)(f"{error}; {advice}") from None
            raise
    finally:
        os.close(lock)


def publish(finished: Path, output: Path) -> None:
    """Make a finished draft, or the file in it, the output, in the place of an older one.

    Args:
        finished: The draft, or a file in it that is the whole output.
        output: The output.
    """
    replaced = output.with_name(f".{output.name}.replaced")
    if os.path.lexists(output):
        _remove(replaced)
    try:
        if os.path.lexists(output):
            output.rename(replaced)
        finished.rename(output)
    except BaseException:
        if os.path.lexists(replaced) and not os.path.lexists(output):
            replaced.rename(output)
        raise
    # Only now: until it has its name, a finished draft can still be resumed.
    for leftover in (output / ORDER_FILE, *output.rglob("*.journal"), output / LEARNED):
        _remove(leftover)
    _remove(replaced)
    _remove(draft_folder(output))


def how_to_go_on(output: Path) -> str:
    """What to tell somebody whose conversion was broken off."""
    if not _is_worth_keeping(draft_folder(output)):
        return "nothing is left behind"
    done = in_bytes(written_bytes(output))
    return f"{done} are kept; the same command with --resume goes on"


def written_bytes(output: Path) -> int:
    """Bytes of the output that are in its draft already."""
    draft = draft_folder(output)
    files = [file for file in draft.rglob("*.safetensors") if draft / LEARNED not in file.parents]
    return sum(file.stat().st_size for file in files)


def _lock(lock: int, draft: Path, output: Path) -> None:
    """Lock an opened draft, and see that it is still the one of that name."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise QwenVLError(f"another conversion is writing to {output}; wait for it") from None
    if not draft.exists() or not os.path.samestat(os.fstat(lock), draft.stat()):
        raise QwenVLError(f"another conversion to {output} has just ended; look at what it wrote")


def _take_over(
    draft: Path, output: Path, order: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Keep what is in a draft, or empty it."""
    try:
        earlier = json.loads((draft / ORDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None  # it was broken off before anything was written
    if resume and earlier == json.loads(json.dumps(order)):
        return
    if earlier is not None and not overwrite:
        done = f"an unfinished conversion to {output} is in {draft}"
        if resume:
            raise Unfinished(
                f"{done}, but of another source or with other options; give those again, or "
                "--overwrite to begin anew"
            )
        raise Unfinished(f"{done}; --resume goes on with it, --overwrite begins anew")
    for entry in draft.iterdir():
        _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def _is_worth_keeping(draft: Path) -> bool:
    """Whether a draft holds anything that took time."""
    journals = any(journal.stat().st_size for journal in draft.rglob("*.journal"))
    return journals or any((draft / LEARNED).rglob("*.safetensors"))
