"""How well boxes fit on held-out pictures: `python -m examples.train_demo.evaluate_boxes FOLDER`.

Asks the runtime itself, greedily. A question counts as right when the answer holds as many boxes as
there are things asked for, and each overlaps its own by an intersection over union of 0.7. Needs
neither torch nor transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from examples.train_demo.boxes import overlap
from examples.train_demo.questions import held_out_boxes
from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.grounding.boxes import Box

FAMILIES: Final = ("where", "box", "box_all")
GOOD: Final = 0.7  # intersection over union


def overlaps(
    vlm: QwenVL, family: str, count: int, *, seed: int = 0, new_phrasing: bool = False
) -> list[list[float]]:
    """Per question, the overlap of every box asked for; all 0 if there are more boxes or fewer."""
    out = []
    for image, question, true in held_out_boxes(
        seed, count, family=family, new_phrasing=new_phrasing
    ):
        reply = vlm.generate(question, images=[image], temperature=0, max_tokens=120)
        found = [fractions(box, image) for box in reply.boxes]
        if len(found) != len(true):
            out.append([0.0] * len(true))
        else:
            out.append([overlap(a, b) for a, b in zip(found, true, strict=True)])
    return out


def fractions(box: Box, image: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a box as fractions of its picture."""
    x1, y1, x2, y2 = box.xyxy
    return x1 / image.width, y1 / image.height, x2 / image.width, y2 / image.height


def line(family: str, phrasing: str, measured: list[list[float]]) -> str:
    """One row of the table."""
    right = sum(min(question) >= GOOD for question in measured)
    each = [value for question in measured for value in question]
    return f"| {family} | {phrasing} | {right}/{len(measured)} | {np.mean(each):.3f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="examples.train_demo.evaluate_boxes", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60, help="questions per family and phrasing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantize", default=None, help="recipe, such as 8bit")
    given = parser.parse_args()
    vlm = load(given.folder, quantize=given.quantize)
    print("| family | phrasings | boxes at 0.7 | mean overlap |\n|---|---|---|---|")
    for family in FAMILIES:
        for new in (False, True):
            measured = overlaps(vlm, family, given.count, seed=given.seed + new, new_phrasing=new)
            print(line(family, "new" if new else "trained", measured), flush=True)


if __name__ == "__main__":
    main()
