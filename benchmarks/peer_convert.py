"""A conversion by mlx-vlm that quantizes everything, as its versions up to 2025 did.

    PEER_PYTHON benchmarks/peer_convert.py SOURCE OUTPUT BITS

Today's command leaves the vision tower dense, so the quantizing is asked for by a predicate, and
the `mode` that old files do not state is taken out.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

GROUP_SIZE = 64


def everything(path: str, module: Any) -> bool:
    """Whether the old converter would have quantized a module."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP_SIZE == 0


def main() -> None:
    """Convert."""
    source, output, bits = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    importlib.import_module("mlx_vlm.convert").convert(
        source,
        str(output),
        quantize=True,
        q_bits=bits,
        q_group_size=GROUP_SIZE,
        quant_predicate=everything,
    )
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    for key in ("quantization", "quantization_config"):
        config[key] = {"group_size": GROUP_SIZE, "bits": bits}
    (output / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
