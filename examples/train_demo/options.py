"""What one training run is told, and its command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from examples.train_demo.rows import KINDS


@dataclass(frozen=True)
class Options:
    """One training run; see `--help` for the meaning of each field."""

    out: Path
    tokenizer: Path
    init: Path | None
    scenes: float
    minutes: float
    rows: int
    micro: int
    canvases: float
    freeze_vision: bool
    freeze_language: bool
    easy: float
    text: float
    muon_lr: float
    vision_rate: float
    lr: float
    weight_decay: float
    guidance: float
    boxes: float
    decay_from: float
    seed: int
    eval_minutes: float
    save_minutes: float
    eval_rows: int
    max_steps: int
    float32: bool


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="examples.train_demo.train", description="Train the demo model."
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run: last.pt, log.jsonl")
    add("--tokenizer", type=Path, required=True, help="tokenizer.json")
    add("--init", type=Path, default=None, help="a last.pt or a model folder to start from")
    add("--minutes", type=float, default=30, help="training time, over all resumes")
    add("--rows", type=int, default=32, help="rows per step, over all processes")
    add("--micro", type=int, default=16, help="rows per forward pass")
    add(
        "--canvases",
        type=float,
        default=0,
        help="chance of a batch of dense canvases per step and process",
    )
    add("--freeze-vision", action="store_true", help="train the language model alone")
    add(
        "--freeze-language",
        action="store_true",
        help="train the vision tower alone, on pictures without questions",
    )
    add(
        "--scenes",
        type=float,
        default=0.25,
        help="share of scenes of shapes among the pictures without questions",
    )
    add(
        "--easy", type=float, default=0.0, help="share of scenes with two or three different shapes"
    )
    add("--text", type=float, default=KINDS["text"], help="share of rows about a line of text")
    add("--muon-lr", type=float, default=5e-3)
    add(
        "--vision-rate",
        type=float,
        default=1.0,
        help="learning rates of the vision tower, relative",
    )
    add("--lr", type=float, default=2e-3, help="learning rate of AdamW")
    add("--weight-decay", type=float, default=0.02)
    add("--boxes", type=float, default=0.5, help="weight of the boxes seen by cells")
    add("--guidance", type=float, default=0.3, help="weight of the attention supervision")
    add(
        "--decay-from",
        type=float,
        default=0.6,
        help="fraction of the time after which the rate falls",
    )
    add("--seed", type=int, default=1)
    add("--eval-minutes", type=float, default=4, help="time between evaluations")
    add("--save-minutes", type=float, default=4, help="time between checkpoints")
    add("--eval-rows", type=int, default=160, help="held-out rows per kind of phrasing")
    add("--max-steps", type=int, default=10**9)
    add("--float32", action="store_true", help="no bfloat16 autocast")
    return Options(**vars(parser.parse_args(arguments)))
