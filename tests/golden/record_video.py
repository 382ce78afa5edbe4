"""Record what transformers makes of videos: `python -m tests.golden.record_video`.

Writes `videos.npz` and `videos.json` beside this file. Needs torch, torchvision and transformers;
the tests do not. CPU, float32, eager attention.

Text after a video goes on behind the largest position on any axis, time included: so said the
code that the checkpoints were trained and released with. Transformers 5 counts on from the larger
of height and width alone; where a video has more temporal patches than rows and columns of tokens
the two differ, and the recording has the former. Where they do not, they are held to be equal.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import transformers
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.golden.pictures import picture
from tests.golden.record import MARGIN, VISIBLE
from tests.golden.tiny import write_checkpoint
from tests.golden.tiny_files import LEARNED_TOKENS, MERGE, TOKEN_ID
from tests.golden.videos import (
    ARRAYS,
    CASES,
    CONVERSATIONS,
    DESCRIPTION,
    LAST,
    MAX_PIXELS,
    MIN_PIXELS,
    PICTURES,
    RECORDING,
    VIDEOS,
    film,
)

GREEDY_STEPS = 12
MAX_BYTES = 400_000
IMAGE_PAD, VIDEO_PAD = TOKEN_ID["<|image_pad|>"], TOKEN_ID["<|video_pad|>"]

ASKED: list[dict[str, Any]] = [
    {"fps": 2},
    {"fps": 0.5},
    {"fps": 1, "max_frames": 7},
    {"fps": 4, "min_frames": 10},
]
# Frames of the video, its rate, and what is asked of the sampling.
SAMPLED: list[tuple[int, int, dict[str, Any]]] = [
    (total, rate, asked)
    for total, rate in (
        (2, 25),
        (3, 30),
        (5, 2),
        (30, 30),
        (90, 30),
        (97, 24),
        (301, 25),
        (1000, 60),
    )
    for asked in ASKED
] + [(50, 25, {"num_frames": count}) for count in (2, 3, 5, 8, 49)]

# Frames, height and width of a video, and its limits in pixels; None for the processor's own.
SIZES: list[tuple[int, int, int, tuple[int, int] | None]] = [
    (4, 480, 640, None),
    (8, 1080, 1920, None),
    (64, 1080, 1920, None),
    (300, 360, 640, None),
    (768, 720, 1280, None),
    (5, 100, 60, None),
    (6, 60, 100, (3136, 20000)),
    (1, 240, 320, (3136, 40000)),
]


class Recorder:
    """The tiny checkpoint and its processors."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.videos = Qwen2VLVideoProcessor(
            size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            cap_pixels_per_frame=True,
        )
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )

    def record(self, name: str) -> dict[str, Any]:
        """Run one conversation, from messages to greedy tokens."""
        films = [film(*numbers) for numbers in VIDEOS[name]]
        batches = [self._cut(frames) for frames in films]
        pixels = torch.cat([batch[0] for batch in batches])
        grid = torch.cat([batch[1] for batch in batches])
        still_pixels, still_grid = None, None
        if name in PICTURES:
            stills = [picture(*numbers) for numbers in PICTURES[name]]
            batch = self.pictures(images=stills, return_tensors="pt")
            still_pixels, still_grid = batch.pixel_values, batch.image_grid_thw
        text = self.tokenizer.apply_chat_template(
            CONVERSATIONS[name], tokenize=False, add_generation_prompt=True
        )
        expanded = _expand(text, "<|video_pad|>", grid)
        if still_grid is not None:
            expanded = _expand(expanded, "<|image_pad|>", still_grid)
        ids = self.tokenizer(expanded, return_tensors="pt").input_ids
        shown = {
            "pixel_values_videos": pixels,
            "video_grid_thw": grid,
            "pixel_values": still_pixels,
            "image_grid_thw": still_grid,
        }
        positions = self.positions(ids, grid, still_grid)
        logits = self.logits(ids, positions, shown)
        self.check_that_frames_and_time_matter(ids, positions, shown, logits)
        features = self.model.model.get_video_features(pixels, grid).pooler_output
        return {
            "text": text,
            "input_ids": ids[0].numpy().astype(np.int32),
            "grid_thw": grid.numpy().astype(np.int32),
            "position_ids": positions[:, 0].numpy().astype(np.int32),
            "rope_delta": int(positions.max()) + 1 - ids.shape[1],
            "patches_sha256": self.digest(pixels),
            "features": torch.cat(list(features)).numpy(),
            "logits": logits[-LAST:].numpy(),
            "greedy": self.greedy(ids, grid, still_grid, shown),
        }

    def _cut(self, frames: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        stacked = torch.from_numpy(np.stack([np.array(frame) for frame in frames]))
        batch = self.videos(
            videos=[stacked.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
        )
        return batch.pixel_values_videos, batch.video_grid_thw

    def digest(self, pixels: torch.Tensor) -> str:
        """SHA-256 of the patches as uint8 [n, 3, 2, 14, 14]."""
        values = pixels.double().numpy().reshape(-1, 3, 2 * 14 * 14)
        mean, deviation = self.videos.image_mean, self.videos.image_std
        levels = (values * np.array(deviation)[:, None] + np.array(mean)[:, None]) * 255
        whole = np.rint(levels)
        assert abs(levels - whole).max() < 1e-3
        return hashlib.sha256(whole.astype(np.uint8).tobytes()).hexdigest()

    def positions(
        self, ids: torch.Tensor, grid: torch.Tensor, still_grid: torch.Tensor | None
    ) -> torch.Tensor:
        """position_ids [3, 1, L], and the model's own where a video is wider than long."""
        kinds = _kinds(ids)
        grids = {IMAGE_PAD: iter(() if still_grid is None else still_grid), VIDEO_PAD: iter(grid)}
        columns: list[list[int]] = []
        tokens = ids[0].tolist()
        index = 0
        while index < len(tokens):
            begin = max(map(max, columns), default=-1) + 1
            if tokens[index] not in grids:
                columns.append([begin] * 3)
                index += 1
                continue
            frames, rows, across = (int(size) for size in next(grids[tokens[index]]))
            for t in range(frames):
                for row in range(rows // MERGE):
                    for column in range(across // MERGE):
                        columns.append([begin + t, begin + row, begin + column])
            index += frames * rows * across // MERGE**2
        positions = torch.tensor(columns).T[:, None]
        if all(t <= max(h, w) // MERGE for t, h, w in grid.tolist()):
            own, delta = self.model.model.get_rope_index(
                ids, kinds, image_grid_thw=still_grid, video_grid_thw=grid
            )
            assert torch.equal(own, positions)
            assert int(delta[0, 0]) == int(positions.max()) + 1 - ids.shape[1]
        return positions

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, shown: dict[str, Any]
    ) -> torch.Tensor:
        """One pass over the prompt without a cache: [L, V] float32."""
        output = self.model(
            input_ids=ids,
            mm_token_type_ids=_kinds(ids),
            position_ids=positions,
            use_cache=False,
            **shown,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def greedy(
        self,
        ids: torch.Tensor,
        grid: torch.Tensor,
        still_grid: torch.Tensor | None,
        shown: dict[str, Any],
    ) -> list[int]:
        """The likeliest tokens one after another, each by a pass of its own."""
        whole, leads = ids, []
        for _ in range(GREEDY_STEPS):
            logits = self.logits(whole, self.positions(whole, grid, still_grid), shown)[-1]
            best = logits.topk(2)
            leads.append(float(best.values[0] - best.values[1]))
            whole = torch.cat([whole, best.indices[None, :1]], dim=1)
        tokens: list[int] = whole[0, ids.shape[1] :].tolist()
        assert min(leads) > MARGIN, f"a greedy token leads by {min(leads)} only"
        assert max(tokens) < LEARNED_TOKENS, f"the answer has a special token: {tokens}"
        print(f"    lead {min(leads):.3f}  {self.tokenizer.decode(tokens)!r}")
        return tokens

    def check_that_frames_and_time_matter(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        shown: dict[str, Any],
        logits: torch.Tensor,
    ) -> None:
        """Assert that frames in another order and lost time show, far above float32's noise."""
        frames = shown["pixel_values_videos"].reshape(-1, 3, 2, 14 * 14)
        others = {
            "no time": self.logits(ids, positions[[1, 1, 2]], shown),
            "frames swapped": self.logits(
                ids, positions, shown | {"pixel_values_videos": frames.flip(2).reshape(-1, 1176)}
            ),
        }
        change = {name: float((other - logits).abs().max()) for name, other in others.items()}
        print("    change when wrong:", {name: round(size, 3) for name, size in change.items()})
        is_still = len(shown["video_grid_thw"]) == 1 and shown["video_grid_thw"][0, 0] == 1
        if not is_still:
            assert min(change.values()) > VISIBLE, change


def sampled() -> list[dict[str, Any]]:
    """What the processor samples of videos of some lengths and rates."""
    processor = Qwen2VLVideoProcessor()
    rows = []
    for total, rate, asked in SAMPLED:
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        indices = processor.sample_frames(metadata, **asked).tolist()
        rows.append({"total": total, "rate": rate, "asked": asked, "indices": indices})
    return rows


def sizes() -> list[dict[str, Any]]:
    """The grids of videos of some sizes."""
    rows = []
    for frames, height, width, limits in SIZES:
        size = {}
        if limits is not None:
            size["size"] = {"shortest_edge": limits[0], "longest_edge": limits[1]}
        processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=True, **size)
        rows.append(
            {
                "frames": frames,
                "height": height,
                "width": width,
                "limits": limits,
                "size": size_of(processor, frames, height, width, 28),
            }
        )
    return rows


class _Asked(Exception):
    """Carries the size that a processor resizes to."""


def size_of(processor: Any, frames: int, height: int, width: int, factor: int) -> list[int]:
    """What `resize` decides, without resizing."""
    from transformers.video_processing_utils import BaseVideoProcessor

    def told(self: Any, image: Any, size: Any, resample: Any) -> Any:
        raise _Asked(size.height, size.width)

    whole, BaseVideoProcessor.resize = BaseVideoProcessor.resize, told
    try:
        processor.resize(
            torch.zeros(1, dtype=torch.uint8).expand(1, frames, 3, height, width),
            size=processor.size,
            resample=processor.resample,
            factor=factor,
            temporal_factor=2,
            cap_pixels_per_frame=True,
        )
    except _Asked as asked:
        return list(asked.args)
    finally:
        BaseVideoProcessor.resize = whole
    raise AssertionError("nothing was resized")


def main() -> None:
    """Record every case, then write both files."""
    torch.set_grad_enabled(False)
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        recorder = Recorder(write_checkpoint(Path(name)))
        for case in CASES:
            print(case)
            recorded = recorder.record(case)
            print("    tokens", len(recorded["input_ids"]), recorded["grid_thw"].tolist())
            arrays.update({f"{case}/{array}": recorded.pop(array) for array in ARRAYS})
            about[case] = recorded
    np.savez(RECORDING, allow_pickle=False, **arrays)
    assert RECORDING.stat().st_size <= MAX_BYTES, f"{RECORDING.stat().st_size} bytes"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    recording = {
        "date": str(datetime.date.today()),
        "versions": versions,
        "cases": about,
        "sampled": sampled(),
        "sizes": sizes(),
    }
    DESCRIPTION.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (RECORDING, DESCRIPTION):
        print(f"{path.name}: {path.stat().st_size} bytes")


def _kinds(ids: torch.Tensor) -> torch.Tensor:
    return (ids == IMAGE_PAD).int() + 2 * (ids == VIDEO_PAD).int()


def _expand(text: str, pad: str, grid: torch.Tensor) -> str:
    parts = text.split(pad)
    assert len(parts) == len(grid) + 1
    slots = [pad * int(size.prod() // MERGE**2) for size in grid]
    return parts[0] + "".join(slot + part for slot, part in zip(slots, parts[1:], strict=True))


if __name__ == "__main__":
    main()
