"""Which model fits into which Mac: the table of docs/models.md, computed and not measured.

    python -m benchmarks.which_fits [--write docs/models.md]

Shapes are the published ones, formats those of the converter, and bytes those that the package
itself predicts before it answers (`weights/memory.py`, `engine/fit.py`). Nothing is loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.full_shape import shapes_of, write_small_files
from mlx_qwenvl.engine.fit import vector_bytes
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS, TOKEN_PIXELS
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.describe import Description, describe
from mlx_qwenvl.weights.files import StoredTensor
from mlx_qwenvl.weights.memory import GPU, memory_needed
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import Format, read_recipe

SIZES = ("2b", "7b", "72b")
RECIPES = ("none", "8bit", "6bit", "4bit", "3bit")
MACS = (8, 16, 24, 32, 36, 48, 64, 96, 128, 192, 512)  # GiB of memory
BEGIN, END = "<!-- computed: begin -->", "<!-- computed: end -->"

CONTEXT = 4096  # tokens of prompt and answer, one picture among them
REST = 1024  # tokens beside a picture that takes most of the context
MOST_PIXELS = 12_845_056  # of a picture, the checkpoints' own limit
PATCHES_PER_TOKEN = 4
GIB = 2**30


def working_set(gib: int) -> int:
    """Bytes that Metal recommends to hold at most: an assumption, from what owners reported."""
    return gib * GIB * 2 // 3 if gib < 36 else gib * GIB * 3 // 4


@dataclass(frozen=True)
class Model:
    """A published size in one format.

    Attributes:
        size: One of `SIZES`.
        recipe: One of `RECIPES`.
        description: Its parts.
    """

    size: str
    recipe: str
    description: Description

    @property
    def weights(self) -> int:
        """Bytes of the loaded weights."""
        return self.needed(TOKEN_PIXELS)[0]

    def needed(self, pixels: int) -> tuple[int, int]:
        """Bytes of the weights, and at the peak of an answer about a picture of so many pixels."""
        tokens = pixels // TOKEN_PIXELS
        context = max(CONTEXT, tokens + REST)
        memory = memory_needed(
            self.description,
            GPU,
            context=context,
            patches=tokens * PATCHES_PER_TOKEN,
            prefill_step=PREFILL_STEP,
        )
        vectors = vector_bytes(self.description.config, context, tokens, GPU)
        return memory.weights, memory.total + vectors

    def largest(self, limit: int) -> int:
        """Pixels of the largest picture that fits; 0 if not even one of the default budget does."""
        if self.needed(DEFAULT_MAX_PIXELS)[1] > limit:
            return 0
        low, high = DEFAULT_MAX_PIXELS // TOKEN_PIXELS, MOST_PIXELS // TOKEN_PIXELS
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.needed(middle * TOKEN_PIXELS)[1] <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * TOKEN_PIXELS


def models() -> Iterator[Model]:
    """All sizes in all formats."""
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            raw = write_small_files(Path(folder), size)
        config = Config.from_dict(json.loads(json.dumps(raw)))
        shapes = shapes_of(raw)
        for recipe in RECIPES:
            formats = make_plan(config, read_recipe(recipe)).formats
            yield Model(size, recipe, describe(config, _stored(shapes, formats)))


def table() -> str:
    """The table in Markdown: the largest picture that fits, in megapixels."""
    lines = [
        "| memory of the Mac, GB | weights | " + " | ".join(map(str, MACS)) + " |",
        "|---|---:|" + "---:|" * len(MACS),
    ]
    for model in models():
        name = "16 bits" if model.recipe == "none" else model.recipe.replace("bit", " bits")
        cells = [_cell(model.largest(working_set(gib))) for gib in MACS]
        size = f"{model.weights / 1e9:.1f} GB"
        lines.append(f"| **{model.size.upper()}**, {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, made: str) -> str:
    """A page with what stands between the marks replaced.

    Raises:
        ValueError: The page has no such marks.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def _cell(pixels: int) -> str:
    if pixels == 0:
        return "no"
    return f"{pixels / 1e6:.1f}" if pixels < MOST_PIXELS else "all"


def _stored(
    shapes: dict[str, tuple[int, ...]], formats: dict[str, Format]
) -> dict[str, StoredTensor]:
    """Tensors as the converter would write them, by name."""
    found = {}

    def store(name: str, dtype: str, *shape: int) -> None:
        tensor = StoredTensor(Path("model.safetensors"), name, shape, dtype, 0, 0)
        nbytes = tensor.size * (4 if dtype == "U32" else 2)
        found[name] = StoredTensor(tensor.file, name, shape, dtype, 0, nbytes)

    for name, shape in shapes.items():
        form = formats.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if form is None:
            store(name, "BF16", *shape)
            continue
        rows, columns = shape
        store(name, "U32", rows, columns * form.bits // 32)
        for part in ("scales", "biases"):
            store(f"{name.removesuffix('weight')}{part}", "BF16", rows, columns // form.group_size)
    return found


def main() -> None:
    """Print the table, or write it into a page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--write", type=Path, metavar="PAGE", help="replace the table of a page")
    arguments = p.parse_args()
    if arguments.write is None:
        print(table())
        return
    page = arguments.write.read_text(encoding="utf-8")
    arguments.write.write_text(with_table(page, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
