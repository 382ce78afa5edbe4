"""OpenBLAS for MLX's CPU backend, loaded before MLX is.

MLX's Linux wheel brings the reference BLAS; on two cores OpenBLAS multiplies float32 matrices
some thirty times faster. A library that is loaded globally before MLX takes the place of the
wheel's own, one that comes later does not. That is why this module, alone in this package, acts
when it is imported. `MLX_QWENVL_OPENBLAS=off` turns it off; without OpenBLAS everything still
works.
"""

from __future__ import annotations

import ctypes
import os
import sys

SWITCH = "MLX_QWENVL_OPENBLAS"
LIBRARY = "libopenblas.so.0"  # Debian: libopenblas0-pthread; Fedora: openblas
SLEEP_AT_ONCE = "4"  # the least that OpenBLAS takes: idle threads spin for 2^4 cycles


def preload_openblas() -> bool:
    """Load OpenBLAS globally where it can still help; tell whether it was."""
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "off":
        return False
    if "mlx.core" in sys.modules:
        return False
    # Its threads spin for the next product otherwise, on cores that MLX's own threads need: of a
    # decode step's processor time that was a quarter on two cores.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", SLEEP_AT_ONCE)
    try:
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


LOADED = preload_openblas()
