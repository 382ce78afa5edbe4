"""Our packed forward against transformers: `python -m examples.train_demo.check_forward FOLDER`.

Prints the largest difference of any logit per kind of row, and fails above 1e-3.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

from examples.train_demo.evaluate import load
from examples.train_demo.model import DemoModel
from examples.train_demo.questions import make_sample
from examples.train_demo.rows import Batch, Row, collate

TOLERANCE = 1e-3  # of a logit, in float32


@torch.no_grad()
def difference(model: DemoModel, row: Row, batch: Batch) -> float:
    """Largest difference between our logits of one conversation and those of transformers."""
    cells = None
    inputs: dict[str, Any] = {}
    if batch.pixels is not None:
        cells = model.vision(batch.pixels, batch.patch_positions, batch.groups)[0][batch.order]
        flat = [
            (torch.from_numpy(m.pixels) - model.pixel_mean) * model.pixel_gain for m in row.media
        ]
        inputs["pixel_values"] = torch.cat(flat)
        inputs["image_grid_thw"] = torch.tensor([(1, *m.grid) for m in row.media])
    out = model.text(batch.ids, batch.positions, batch.masks, cells, batch.cells_at)
    ids = batch.ids[None]
    theirs = model.hf(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        **inputs,
    ).logits[0]
    return (model.logits(out.hidden) - theirs).abs().max().item()


def main() -> None:
    """Command line."""
    model, maker = load(Path(sys.argv[1]))
    rng = random.Random(3)
    for kind in ("shapes", "text", "pair", "talk"):
        sample = make_sample(rng, kind)
        row = maker.row(sample, sample.questions[:3], chat=True)
        worst = difference(model, row, collate([row]))
        print(f"{kind}: {worst:.1e}")
        if worst > TOLERANCE:
            sys.exit(f"{kind}: the packed forward differs by {worst:.1e}, expected {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
