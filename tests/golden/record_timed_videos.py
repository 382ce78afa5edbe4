"""Record what transformers makes of videos for Qwen3-VL.

`python -m tests.golden.record_timed_videos` writes `qwen3_vl_videos.*` and `qwen3_vl_moe_videos.*`
beside this file. Needs torch, torchvision and transformers; the tests do not. CPU, float32, eager
attention.

Each temporal patch stands between marks of its own, behind its time. The processor that came with
the checkpoints puts them in the place of all that the template writes for a video, a pad between
two marks. The one recorded with leaves the outer marks where they are. The recording has the
former, and the latter is held to be the same but for these two tokens.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import transformers
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.golden.record import MARGIN, VISIBLE
from tests.golden.record_video import GREEDY_STEPS, IMAGE_PAD, SAMPLED, VIDEO_PAD, size_of
from tests.golden.timed_videos import (
    ARRAYS,
    CASES,
    LAST,
    MIN_PIXELS,
    RATE,
    TOKEN_SIDE,
    TOTAL_PIXELS,
    paths_of,
)
from tests.golden.tiny_files import LEARNED_TOKENS, TOKEN_ID
from tests.golden.videos import CONVERSATIONS, films, stills
from tests.golden.younger import write_younger

PLACE = re.compile(r"<\|vision_start\|><\|video_pad\|><\|vision_end\|>")
OUTER = [TOKEN_ID["<|vision_start|>"], TOKEN_ID["<|vision_end|>"]]
LIMITS = {"shortest_edge": MIN_PIXELS, "longest_edge": TOTAL_PIXELS}

# Frames and rate of videos whose length or times a container's milliseconds would change.
ROUNDED = [(60, 24, {"fps": 2}), (17, 30, {"fps": 3})]
# Frames, height and width of a video, and least and most pixels of all frames.
SIZES: list[tuple[int, int, int, tuple[int, int]]] = [
    (frames, height, width, limits)
    for frames, height, width in (
        (2, 480, 640),
        (3, 720, 960),
        (4, 1080, 1920),
        (5, 900, 1000),
        (7, 1080, 1920),
        (64, 1080, 1920),
        (301, 360, 640),
        (768, 720, 1280),
        (6, 20, 100),
        (4, 30, 31),
    )
    for limits in ((MIN_PIXELS, TOTAL_PIXELS), (131072, 786432), (65536, 16777216))
]


class Recorder:
    """A member's tiny checkpoint and its processors."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.videos = Qwen3VLVideoProcessor(size=LIMITS, cap_pixels_per_frame=True)
        self.pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.processor = Qwen3VLProcessor(self.pictures, self.tokenizer, self.videos)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )

    def record(self, name: str) -> dict[str, Any]:
        """Run one conversation, from messages to greedy tokens."""
        text = self.tokenizer.apply_chat_template(
            CONVERSATIONS[name], tokenize=False, add_generation_prompt=True
        )
        tensors, timed = self._cut(films(name, TOKEN_SIDE))
        shown = {
            "pixel_values_videos": tensors["pixel_values_videos"],
            "video_grid_thw": tensors["video_grid_thw"],
        }
        pictures = stills(name, TOKEN_SIDE)
        if pictures:
            batch = self.pictures(images=pictures, return_tensors="pt")
            shown |= {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
        waiting = iter(timed)
        expanded = PLACE.sub(lambda _: next(waiting), text)
        for grid in shown.get("image_grid_thw", []):
            pads = "<|image_slot|>" * int(grid.prod() // 4)
            expanded = expanded.replace("<|image_pad|>", pads, 1)
        ids = self.tokenizer(
            expanded.replace("<|image_slot|>", "<|image_pad|>"), return_tensors="pt"
        ).input_ids
        self._check_outer_marks(text, name, ids)
        positions, delta = self._positions(ids, shown)
        logits = self._logits(ids, shown)
        self._check_that_frames_and_times_matter(ids, shown, logits)
        found = self.model.model.get_video_features(
            shown["pixel_values_videos"], shown["video_grid_thw"]
        )
        later = [torch.cat(list(part)) for part in found.deepstack_features]
        features = torch.cat([torch.cat(list(found.pooler_output)), *later], dim=-1)
        return {
            "text": text,
            "input_ids": ids[0].numpy().astype(np.int32),
            "grid_thw": shown["video_grid_thw"].numpy().astype(np.int32),
            "position_ids": positions[:, 0].numpy().astype(np.int32),
            "rope_delta": delta,
            "patches_sha256": self._digest(shown["pixel_values_videos"]),
            "features": features.numpy(),
            "logits": logits[-LAST:].numpy(),
            "greedy": self._greedy(ids, shown),
        }

    def _cut(self, videos: list[list[Any]]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Patches and grids of videos, and each as the text that stands for it."""
        stacked, metadata = _stacked(videos)
        batch = self.videos(
            videos=stacked,
            video_metadata=metadata,
            do_sample_frames=False,
            return_metadata=True,
            return_tensors="pt",
        )
        timed = [self.processor.replace_video_token(batch, index) for index in range(len(videos))]
        return batch, timed

    def _check_outer_marks(self, text: str, name: str, ids: torch.Tensor) -> None:
        """Assert that the processor's own ids are these, with a mark more before and behind."""
        stacked, metadata = _stacked(films(name, TOKEN_SIDE))
        pictures = stills(name, TOKEN_SIDE)
        own = self.processor(
            text=[text],
            images=pictures or None,
            videos=stacked,
            video_metadata=metadata,
            do_sample_frames=False,
        ).input_ids[0]
        start, end = OUTER
        plain: list[int] = []
        for index, token in enumerate(own):
            opens = token == start and own[index + 1] not in (VIDEO_PAD, IMAGE_PAD)
            closes = token == end and own[index - 1] == end
            if not (opens or closes):
                plain.append(token)
        assert len(own) - len(plain) == 2 * len(stacked)
        assert plain == ids[0].tolist()

    def _digest(self, pixels: torch.Tensor) -> str:
        """SHA-256 of the patches as uint8 [n, 3, 2, 16, 16]."""
        levels = (pixels.double().numpy() * 0.5 + 0.5) * 255
        whole = np.rint(levels)
        assert abs(levels - whole).max() < 1e-3
        return hashlib.sha256(whole.astype(np.uint8).tobytes()).hexdigest()

    def _positions(self, ids: torch.Tensor, shown: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """The model's own M-RoPE positions [3, 1, L] and rope_delta."""
        positions, delta = self.model.model.get_rope_index(
            ids,
            _kinds(ids),
            image_grid_thw=shown.get("image_grid_thw"),
            video_grid_thw=shown["video_grid_thw"],
        )
        return positions, int(delta[0, 0])

    def _logits(
        self, ids: torch.Tensor, shown: dict[str, Any], positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One pass over the prompt without a cache: [L, V] float32."""
        if positions is None:
            positions, _ = self._positions(ids, shown)
        output = self.model(
            input_ids=ids,
            mm_token_type_ids=_kinds(ids),
            position_ids=positions,
            use_cache=False,
            **shown,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _greedy(self, ids: torch.Tensor, shown: dict[str, Any]) -> list[int]:
        """The likeliest tokens one after another, each by a pass of its own."""
        whole, leads = ids, []
        for _ in range(GREEDY_STEPS):
            best = self._logits(whole, shown)[-1].topk(2)
            leads.append(float(best.values[0] - best.values[1]))
            whole = torch.cat([whole, best.indices[None, :1]], dim=1)
        tokens: list[int] = whole[0, ids.shape[1] :].tolist()
        print(f"    lead {min(leads):.3f}  {self.tokenizer.decode(tokens)!r}")
        assert min(leads) > MARGIN, f"a greedy token leads by {min(leads)} only"
        assert max(tokens) < LEARNED_TOKENS, f"the answer has a special token: {tokens}"
        return tokens

    def _check_that_frames_and_times_matter(
        self, ids: torch.Tensor, shown: dict[str, Any], logits: torch.Tensor
    ) -> None:
        """Assert that frames in another order and places of one piece show, far above noise."""
        patches = shown["pixel_values_videos"]
        frames = patches.reshape(-1, 3, 2, TOKEN_SIDE**2 // 4).flip(2).reshape(patches.shape)
        plain = torch.arange(ids.shape[1]).expand(3, 1, -1)
        others = {
            "plain positions": self._logits(ids, shown, plain),
            "patches reversed": self._logits(ids, shown | {"pixel_values_videos": patches.flip(0)}),
        }
        if not torch.equal(frames, patches):
            swapped = shown | {"pixel_values_videos": frames}
            others["frames swapped"] = self._logits(ids, swapped)
        change = {name: float((other - logits).abs().max()) for name, other in others.items()}
        print("    change when wrong:", {name: round(size, 3) for name, size in change.items()})
        assert min(change.values()) > VISIBLE, change


def _stacked(videos: list[list[Any]]) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
    """Videos as tensors, with numbers of their frames; a single frame is there twice.

    The processor refuses one frame alone, which its sibling of Qwen2-VL fills up with itself.
    """
    stacked, metadata = [], []
    for frames in videos:
        numbers = list(range(len(frames))) if len(frames) > 1 else [0, 0]
        arrays = np.stack([np.array(frames[number]) for number in numbers])
        stacked.append(torch.from_numpy(arrays).permute(0, 3, 1, 2))
        metadata.append(
            VideoMetadata(total_num_frames=len(frames), fps=RATE, frames_indices=numbers)
        )
    return stacked, metadata


def _kinds(ids: torch.Tensor) -> torch.Tensor:
    return (ids == IMAGE_PAD).int() + (ids == VIDEO_PAD).int() * 2


def sampled(recorder: Recorder) -> list[dict[str, Any]]:
    """What is sampled of videos of some lengths and rates, and the times that prompts tell."""
    rows = []
    for total, rate, asked in (*SAMPLED, *ROUNDED):
        ends = {key: asked[key] for key in ("min_frames", "max_frames") if key in asked}
        own = {key: asked[key] for key in asked.keys() - ends.keys()}
        indices = (
            Qwen3VLVideoProcessor(**ends)
            .sample_frames(VideoMetadata(total_num_frames=total, fps=rate), **own)
            .tolist()
        )
        times = recorder.processor._calculate_timestamps([*indices], rate, 2)
        rows.append(
            {
                "total": total,
                "rate": rate,
                "asked": asked,
                "indices": indices,
                "times": [f"{moment:.1f}" for moment in times],
            }
        )
    return rows


def sizes() -> list[dict[str, Any]]:
    """The sizes of frames, with each frame capped."""
    rows = []
    for frames, height, width, limits in SIZES:
        size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
        processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=True, size=size)
        rows.append(
            {
                "frames": frames,
                "height": height,
                "width": width,
                "limits": limits,
                "size": size_of(processor, frames, height, width, TOKEN_SIDE),
            }
        )
    return rows


def record(member: str, folder: Path) -> None:
    """Record one member."""
    recorder = Recorder(write_younger(folder, member))
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for case in CASES[member]:
        print(member, case)
        recorded = recorder.record(case)
        print("    tokens", len(recorded["input_ids"]), recorded["grid_thw"].tolist())
        arrays.update({f"{case}/{array}": recorded[array] for array in ARRAYS[member]})
        about[case] = {k: v for k, v in recorded.items() if not isinstance(v, np.ndarray)}
    recording, description = paths_of(member)
    np.savez(recording, allow_pickle=False, **arrays)
    content: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
        },
        "cases": about,
    }
    if member == "qwen3_vl":
        content |= {"sampled": sampled(recorder), "sizes": sizes()}
    description.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (recording, description):
        print(f"{path.name}: {path.stat().st_size} bytes")


def main() -> None:
    """Record both members."""
    torch.set_grad_enabled(False)
    for member in CASES:
        with tempfile.TemporaryDirectory() as name:
            record(member, Path(name))


if __name__ == "__main__":
    main()
