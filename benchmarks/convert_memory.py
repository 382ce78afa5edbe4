"""How much memory converting takes at the true tensor sizes of 2B, 7B and 72B.

    python -m benchmarks.convert_memory FOLDER [--layers 2] [--quantize 4bit]

The checkpoints in FOLDER are sparse files: headers with true shapes over holes that read as zeros,
so that 72B's tensors take no room. Each is cut to a few layers, once to as many as asked for and
once to twice as many, to show that the number does not matter; the largest tensors (embedding,
head, MLP) are whole. Memory is the peak of resident memory of the converting process. The last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.full_shape import SIZES, shapes_of, write_small_files

SHARDS = 8  # files of a checkpoint
ITEM_BYTES = 2  # bfloat16


def write_sparse(folder: Path, size: str, layers: int) -> dict[str, tuple[int, ...]]:
    """Write a checkpoint of zeros that takes no room, and give its shapes."""
    folder.mkdir(parents=True)
    raw = write_small_files(folder, size, layers)
    shapes = shapes_of(raw)
    names = list(shapes)
    per_file = math.ceil(len(names) / SHARDS)
    for number in range(SHARDS):
        header: dict[str, Any] = {}
        end = 0
        for name in names[number * per_file : (number + 1) * per_file]:
            begin, end = end, end + math.prod(shapes[name]) * ITEM_BYTES
            header[name] = {
                "dtype": "BF16",
                "shape": shapes[name],
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        with (folder / f"model-{number:03}.safetensors").open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(out.tell() + end)
    return shapes


def measure(folder: Path, size: str, layers: int, recipe: str) -> dict[str, Any]:
    """Convert one of them in a process of its own."""
    source, output = folder / f"{size}-{layers}", folder / "converted"
    shapes = write_sparse(source, size, layers)
    code = (
        "import json, sys, time; from pathlib import Path; from convert import convert;"
        "from convert.__main__ import peak_memory; begin = time.perf_counter();"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]);"
        "print(json.dumps([peak_memory(), time.perf_counter() - begin]))"
    )
    command = [sys.executable, "-c", code, str(source), str(output), recipe]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak_bytes, seconds = json.loads(done.stdout)
    shutil.rmtree(source)
    shutil.rmtree(output)
    sizes = [math.prod(shape) * ITEM_BYTES for shape in shapes.values()]
    return {
        "size": size,
        "layers": layers,
        "checkpoint_bytes": sum(sizes),
        "largest_tensor_bytes": max(sizes),
        "peak_bytes": peak_bytes,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure each size twice."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--quantize", default="4bit")
    arguments = p.parse_args()
    figures = []
    for size in SIZES:
        for layers in (arguments.layers, 2 * arguments.layers):
            row = measure(arguments.folder, size, layers, arguments.quantize)
            figures.append(row)
            print(
                f"{size} cut to {layers} layers: {row['checkpoint_bytes'] / 1e9:.2f} GB, largest "
                f"tensor {row['largest_tensor_bytes'] / 1e9:.2f} GB, peak "
                f"{row['peak_bytes'] / 1e6:.0f} MB, {row['seconds']} s"
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
