"""Which model fits into which Mac: the table of docs/models.md, computed and not measured.

    python -m benchmarks.which_fits [--write docs/models.md]

Shapes are the published ones, formats those of the converter, and bytes those that the package
itself predicts before it answers (`weights/memory.py`, `engine/fit.py`). Nothing is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_qwenvl.engine.fit import vector_bytes
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.describe import Description, describe
from mlx_qwenvl.weights.files import StoredTensor
from mlx_qwenvl.weights.memory import GPU, memory_needed
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import Format, read_recipe
from tests.family.checkpoints import config_of, stored_shapes

RECIPES = ("none", "8bit", "6bit", "4bit", "3bit")
# By their short names: the member, the repository on the hub, and what is told of it.
CHECKPOINTS = {
    "2b": ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct", RECIPES),
    "7b": ("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", RECIPES),
    "72b": ("qwen2_vl", "Qwen/Qwen2-VL-72B-Instruct", RECIPES),
    "qwen2.5-vl-3b": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", ("8bit", "4bit")),
    "qwen2.5-vl-7b": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", ("8bit", "4bit")),
    "qwen2.5-vl-32b": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-32B-Instruct", ("8bit", "4bit")),
    "qwen2.5-vl-72b": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-72B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-2b": ("qwen3_vl", "Qwen/Qwen3-VL-2B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-4b": ("qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-8b": ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-32b": ("qwen3_vl", "Qwen/Qwen3-VL-32B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-30b-a3b": ("qwen3_vl_moe", "Qwen/Qwen3-VL-30B-A3B-Instruct", ("8bit", "4bit")),
    "qwen3-vl-235b-a22b": ("qwen3_vl_moe", "Qwen/Qwen3-VL-235B-A22B-Instruct", ("4bit", "3bit")),
}
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
    """A published checkpoint in one format.

    Attributes:
        name: One of `CHECKPOINTS`.
        recipe: One of `RECIPES`.
        description: Its parts.
    """

    name: str
    recipe: str
    description: Description

    @property
    def weights(self) -> int:
        """Bytes of the loaded weights."""
        return self.needed(self.token_pixels)[0]

    @property
    def token_pixels(self) -> int:
        """Pixels of a picture that become one token."""
        vision = self.description.config.vision
        return (vision.patch_size * vision.spatial_merge_size) ** 2

    @property
    def label(self) -> str:
        """What people call it; the eldest go by their size alone."""
        _, repository, _ = CHECKPOINTS[self.name]
        whole = repository.partition("/")[2].removesuffix("-Instruct")
        return whole.removeprefix("Qwen2-VL-")

    def needed(self, pixels: int) -> tuple[int, int]:
        """Bytes of the weights, and at the peak of an answer about a picture of so many pixels."""
        tokens = pixels // self.token_pixels
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
        one = self.token_pixels
        low, high = DEFAULT_MAX_PIXELS // one, MOST_PIXELS // one
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.needed(middle * one)[1] <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * one

    def cell(self, limit: int) -> str:
        """The largest picture that fits, in megapixels."""
        pixels = self.largest(limit)
        if pixels == 0:
            return "no"
        is_all = pixels == MOST_PIXELS // self.token_pixels * self.token_pixels
        return "all" if is_all else f"{pixels / 1e6:.1f}"


def models() -> Iterator[Model]:
    """All checkpoints in their formats."""
    for name, (member, repository, recipes) in CHECKPOINTS.items():
        config = Config.from_dict(config_of(member, repository))
        shapes = stored_shapes(config)
        for recipe in recipes:
            formats = make_plan(config, read_recipe(recipe)).formats
            yield Model(name, recipe, describe(config, _stored(shapes, formats)))


def table() -> str:
    """The table in Markdown: the largest picture that fits, in megapixels."""
    lines = [
        "| memory of the Mac, GB | weights | " + " | ".join(map(str, MACS)) + " |",
        "|---|---:|" + "---:|" * len(MACS),
    ]
    for model in models():
        name = "16 bits" if model.recipe == "none" else model.recipe.replace("bit", " bits")
        cells = [model.cell(working_set(gib)) for gib in MACS]
        size = f"{model.weights / 1e9:.1f} GB"
        lines.append(f"| **{model.label}**, {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, made: str) -> str:
    """A page with what stands between the marks replaced.

    Raises:
        ValueError: The page has no such marks.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


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
        *rows, columns = shape
        store(name, "U32", *rows, columns * form.bits // 32)
        for part in ("scales", "biases"):
            store(f"{name.removesuffix('weight')}{part}", "BF16", *rows, columns // form.group_size)
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
