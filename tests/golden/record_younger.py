"""Record what transformers makes of the younger siblings: `python -m tests.golden.record_younger`.

Writes one `.npz` and one `.json` a member beside this file, with less in them than `record.py`
keeps of Qwen2-VL: the logits of a prompt's last tokens, which hang on all before.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.golden.cases import ARRAYS, LAST_LOGITS, YOUNGER_CASES, paths_of
from tests.golden.conversations import CONVERSATIONS, SHOWN
from tests.golden.hand_worked import FRAMES, VIDEOS
from tests.golden.record import Recorder
from tests.golden.tiny_files import TOKEN_ID
from tests.golden.younger import MEMBERS, write_younger

VIDEO_PAD = TOKEN_ID["<|video_pad|>"]


def check_layouts(folder: Path, member: str) -> None:
    """Assert that both layouts give the same logits."""
    both = [
        Recorder(write_younger(folder / "hub", member)),
        Recorder(write_younger(folder / "nested", member, layout="nested", shards=3)),
    ]
    pixels, grid, _ = both[0].patches(SHOWN["two_images"])
    ids = torch.tensor([[11, 12, TOKEN_ID["<|vision_start|>"]]])
    logits = [one.model(input_ids=ids, use_cache=False).logits for one in both]
    features = [one.features(pixels, grid) for one in both]
    # Not to the bit: the product over experts sums in an order of its own, run by run.
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert np.array_equal(features[0], features[1])


def video_positions(recorder: Recorder) -> dict[str, Any]:
    """The positions of the videos in `hand_worked.py`, as transformers has them."""
    found: dict[str, Any] = {}
    counts_seconds = recorder.model.config.model_type == "qwen2_5_vl"
    for name, video in (VIDEOS if counts_seconds else {"frames": FRAMES}).items():
        ids = torch.tensor([video.input_ids])
        positions, delta = recorder.model.model.get_rope_index(
            ids,
            (ids == VIDEO_PAD).int() * 2,
            video_grid_thw=torch.tensor([video.grid_thw]),
            second_per_grid_ts=torch.tensor([video.seconds_per_grid]),
        )
        found[name] = {"position_ids": positions[:, 0].tolist(), "rope_delta": int(delta[0, 0])}
    return found


def record(member: str, folder: Path) -> None:
    """Record one member."""
    check_layouts(folder, member)
    recorders = {
        tied: Recorder(write_younger(folder / f"tied-{tied}", member, tied=tied))
        for tied in (True, False)
    }
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    about: dict[str, Any] = {}
    for case in YOUNGER_CASES:
        print(member, case)
        plain = case.removeprefix("untied_")
        tied, shown = plain == case, SHOWN.get(plain, [])
        recorded = recorders[tied].record(CONVERSATIONS[plain], shown)
        recorded["logits"] = recorded["logits"][-LAST_LOGITS:]
        arrays.update({f"{case}/{array}": recorded.pop(array) for array in ARRAYS})
        about[case] = {
            "tied": tied,
            "messages": CONVERSATIONS[plain],
            "pictures": shown,
            **recorded,
        }
    recording, description = paths_of(member)
    np.savez(recording, allow_pickle=False, **arrays)
    content = {
        "date": str(datetime.date.today()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cases": about,
        "videos": video_positions(recorders[True]),
    }
    description.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (recording, description):
        print(f"{path.name}: {path.stat().st_size} bytes")


def main() -> None:
    """Record the members that are named, or all."""
    torch.set_grad_enabled(False)
    for member in sys.argv[1:] or MEMBERS:
        with tempfile.TemporaryDirectory() as name:
            record(member, Path(name))


if __name__ == "__main__":
    main()
