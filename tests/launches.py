"""How many GPU launches a decode step takes, counted in a trace that needs no GPU.

`mx.export_function` hands over every primitive of a function. Off the GPU MLX decomposes its fused
ops (`mx.fast.*`) and leaves activations uncompiled, so each of them is stood in for by one op that
depends on all of its inputs. Views launch nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx

VIEWS = frozenset(
    [
        *("AsStrided", "Broadcast", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unflatten"),
    ]
)


def count_launches(function: Callable[..., mx.array], *arguments: mx.array) -> Counter[str]:
    """Launches of one call by primitive."""
    launches: Counter[str] = Counter()

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "primitive" and event["name"] not in VIEWS:
            launches[event["name"]] += 1

    with _whole_ops():
        mx.export_function(note, function, *arguments)
    return launches


@contextmanager
def _whole_ops() -> Iterator[None]:
    with (
        patch.object(mx.fast, "rms_norm", lambda x, weight, eps: _one(x, weight)),
        patch("mlx_qwenvl.models.cache.attend", lambda q, k, v, scale, mask: _one(q, k, v)),
        patch(
            "mlx_qwenvl.models.batch_cache.attend_masked",
            lambda q, k, v, scale, mask: _one(q, k, v, mask),
        ),
        patch.object(mx.fast, "rope", lambda x, *_, **__: _one(x)),
        patch("mlx_qwenvl.models.text.swiglu", lambda gate, up: _one(gate, up)),
        patch("mlx_qwenvl.kernels.rotate_qkv._turn", _one),
    ):
        yield


def _one(first: mx.array, *others: mx.array) -> mx.array:
    """One launch that reads all of its inputs, with the first one's shape."""
    return mx.abs(mx.depends([first], list(others))[0]) if others else mx.abs(first)
