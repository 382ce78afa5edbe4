"""Progress bars: widgets in a notebook that has them, else lines of text on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY_S = 1.0  # seconds; what is done by then needs no bar


def choose_tqdm() -> Any:
    """`tqdm.auto`'s class, without its warning where a notebook has no widgets."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm
    return tqdm


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is gone when the block ends, or when all is done.

    Args:
        what: What is being done.
        unit: What is counted.

    Yields:
        To be called with how much is done and how much there is.
    """
    shown = choose_tqdm()(desc=what, unit=f" {unit}", leave=False, delay=DELAY_S)

    def advance(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)
        if done == total:
            shown.close()

    try:
        yield advance
    finally:
        shown.close()
