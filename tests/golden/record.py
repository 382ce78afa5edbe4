"""Record what transformers makes of the tiny checkpoint: `python -m tests.golden.record`.

Writes `qwen2_vl.npz` and `qwen2_vl.json` beside this file. Needs torch and transformers; the tests
do not. CPU, float32, eager attention, and the image processor's Pillow backend: the torchvision
backend resizes differently.
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
import PIL
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.golden.cases import ARRAYS, CASES, DESCRIPTION, RECORDING, Message
from tests.golden.conversations import CONVERSATIONS, SHOWN
from tests.golden.hand_worked import HAND_WORKED
from tests.golden.pictures import picture
from tests.golden.tiny import write_checkpoint
from tests.golden.tiny_files import LEARNED_TOKENS, MERGE, TOKEN_ID

GREEDY_STEPS = 24
# Smallest lead of a greedy token, far above the difference between two float32 backends.
MARGIN = 0.004
VISIBLE = 0.03  # smallest change of a logit when pictures or positions are wrong
MAX_BYTES = 2_500_000

IMAGE_PAD = TOKEN_ID["<|image_pad|>"]


class Recorder:
    """One loaded checkpoint and the arrays recorded from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model, report = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        assert not any(report.values()), f"{folder}: {report}"
        self.pixels = 2 * self.processor.patch_size**2  # of a patch's two frames

    def record(
        self, conversation: list[Message], shown: list[tuple[int, int, int]]
    ) -> dict[str, Any]:
        """Run one conversation, from messages to greedy tokens.

        Args:
            conversation: The messages.
            shown: Seed, width, height of each picture.

        Returns:
            The fields of a `GoldenCase` that are recorded.
        """
        pixels, grid, digest = self.patches(shown)
        text = self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(_expand(text, grid), return_tensors="pt").input_ids
        assert int((ids == IMAGE_PAD).sum()) == int(grid.prod(-1).sum()) // MERGE**2
        positions, delta = self.positions(ids, grid)
        logits = self.logits(ids, pixels, grid, positions)
        self.check_that_positions_and_pictures_matter(ids, pixels, grid, positions, logits)
        return {
            "text": text,
            "input_ids": ids[0].numpy().astype(np.int32),
            "grid_thw": grid.numpy().astype(np.int32),
            "position_ids": positions[:, 0].numpy().astype(np.int32),
            "rope_delta": delta,
            "patches_sha256": digest,
            "features": self.features(pixels, grid),
            "logits": logits.numpy(),
            "greedy": self.greedy(ids, pixels, grid),
        }

    def patches(self, shown: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Preprocess pictures.

        Args:
            shown: Seed, width, height of each picture.

        Returns:
            Normalized patches [n_patches, 1176], grid_thw [n, 3] and the digest of the
            patches as uint8.
        """
        if not shown:
            empty = torch.zeros(0, 3 * self.pixels), torch.zeros(0, 3, dtype=torch.long)
            return *empty, hashlib.sha256(b"").hexdigest()
        images = [picture(*numbers) for numbers in shown]
        batch = self.processor(images=images, return_tensors="pt")
        values = batch.pixel_values.numpy().reshape(-1, 3, self.pixels)
        mean, deviation = self.processor.image_mean, self.processor.image_std
        levels = values * np.array(deviation)[:, None] + np.array(mean)[:, None]
        whole = np.rint(levels * 255)
        # The processor's arithmetic on those integers must give its output again, to the bit.
        again = self.processor.rescale(np.moveaxis(whole, 1, 0), self.processor.rescale_factor)
        again = self.processor.normalize(again, mean, deviation)
        assert np.array_equal(np.moveaxis(again, 0, 1).astype(np.float32), values)
        digest = hashlib.sha256(whole.astype(np.uint8).tobytes()).hexdigest()
        return batch.pixel_values, batch.image_grid_thw, digest

    def positions(self, ids: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The model's own M-RoPE positions.

        Args:
            ids: [1, L].
            grid: [n, 3].

        Returns:
            position_ids [3, 1, L] and rope_delta.
        """
        kinds = (ids == IMAGE_PAD).int()
        positions, delta = self.model.model.get_rope_index(ids, kinds, image_grid_thw=grid)
        return positions, int(delta[0, 0])

    def logits(
        self,
        ids: torch.Tensor,
        pixels: torch.Tensor,
        grid: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over the prompt without a cache: [L, V] float32."""
        output = self.model(
            input_ids=ids,
            pixel_values=pixels if len(grid) else None,
            image_grid_thw=grid if len(grid) else None,
            mm_token_type_ids=(ids == IMAGE_PAD).int(),
            position_ids=positions,
            use_cache=False,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def features(self, pixels: torch.Tensor, grid: torch.Tensor) -> np.ndarray[Any, Any]:
        """Vision features of all images: [n_patches/4, D] float32."""
        if not len(grid):
            return np.zeros((0, self.model.config.text_config.hidden_size), np.float32)
        found = self.model.model.get_image_features(pixels, grid)
        pooled = torch.cat(list(found.pooler_output))
        # Qwen3-VL gives features for the first layers too; they follow, in the same row.
        later = [torch.cat(list(part)) for part in getattr(found, "deepstack_features", None) or []]
        features: np.ndarray[Any, Any] = torch.cat([pooled, *later], dim=-1).numpy()
        return features

    def greedy(self, ids: torch.Tensor, pixels: torch.Tensor, grid: torch.Tensor) -> list[int]:
        """Generate with transformers' cache, and check every token against a pass without one.

        Args:
            ids: [1, L].
            pixels: [n_patches, 1176].
            grid: [n, 3].

        Returns:
            `GREEDY_STEPS` tokens; none is special, each leads by more than `MARGIN`.
        """
        images = {"pixel_values": pixels, "image_grid_thw": grid} if len(grid) else {}
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=GREEDY_STEPS, pad_token_id=TOKEN_ID["<|endoftext|>"]
        )
        self.model.generation_config = settings
        whole = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == IMAGE_PAD).int(),
            generation_config=settings,
            **images,
        )
        tokens: list[int] = whole[0, ids.shape[1] :].tolist()
        positions, _ = self.positions(whole, grid)
        logits = self.logits(whole, pixels, grid, positions)[ids.shape[1] - 1 : -1]
        best = logits.topk(2).values
        lead = float((best[:, 0] - best[:, 1]).min())
        assert tokens == logits.argmax(-1).tolist(), "the cached answer differs from the whole pass"
        assert len(tokens) == GREEDY_STEPS
        assert lead > MARGIN, f"a greedy token leads by {lead} only"
        assert max(tokens) < LEARNED_TOKENS, f"the answer has a special token: {tokens}"
        print(f"    lead {lead:.3f}  {self.tokenizer.decode(tokens)!r}")
        return tokens

    def check_that_positions_and_pictures_matter(
        self,
        ids: torch.Tensor,
        pixels: torch.Tensor,
        grid: torch.Tensor,
        positions: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        """Assert that wrong pictures or positions show, far above the noise of float32 (1e-5)."""
        if not len(grid):
            return
        wrong = {
            "plain": torch.arange(ids.shape[1]).expand(3, 1, -1),
            "rows for columns": positions[[0, 2, 1]],
            "no rows": positions[[0, 0, 2]],
            "no columns": positions[[0, 1, 0]],
        }
        others = {
            name: self.logits(ids, pixels, grid, other)
            for name, other in wrong.items()
            if not torch.equal(other, positions)  # one row or one column has nothing to lose
        }
        others["pictures"] = self.logits(ids, pixels.flip(0), grid, positions)
        change = {name: float((other - logits).abs().max()) for name, other in others.items()}
        print("    change when wrong:", {name: round(size, 3) for name, size in change.items()})
        assert min(change.values()) > VISIBLE, change


def check_layouts(folder: Path) -> None:
    """Assert that both layouts give the same logits, and that transformers writes the nested."""
    hub = Recorder(write_checkpoint(folder / "hub"))
    nested = Recorder(write_checkpoint(folder / "nested", layout="nested", shards=3))
    pixels, grid, _ = hub.patches(SHOWN["two_images"])
    text = hub.tokenizer.apply_chat_template(CONVERSATIONS["two_images"], tokenize=False)
    assert text == nested.tokenizer.apply_chat_template(CONVERSATIONS["two_images"], tokenize=False)
    ids = hub.tokenizer(_expand(text, grid), return_tensors="pt").input_ids
    positions, _ = hub.positions(ids, grid)
    logits = hub.logits(ids, pixels, grid, positions)
    assert torch.equal(logits, nested.logits(ids, pixels, grid, positions))

    saved = folder / "saved"
    nested.model.save_pretrained(saved)
    nested.tokenizer.save_pretrained(saved)
    nested.processor.save_pretrained(saved)
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        theirs, own = _content(saved / name), _content(nested.folder / name)
        for content in (theirs, own):
            if isinstance(content, dict):
                content.pop("transformers_version", None)  # of the one that saves
        assert theirs == own, name
    tokenizer = _content(saved / "tokenizer_config.json")
    ours = _content(nested.folder / "tokenizer_config.json")
    for only in ("is_local", "local_files_only", "processor_class"):
        tokenizer.pop(only, None), ours.pop(only, None)
    assert tokenizer == ours, (tokenizer, ours)
    processor = _content(nested.folder / "processor_config.json")["image_processor"]
    assert processor == _content(saved / "preprocessor_config.json")


def check_hand_worked(recorder: Recorder) -> None:
    """Assert that transformers agrees with the positions worked out by hand."""
    for name, worked in HAND_WORKED.items():
        ids = torch.tensor([worked.input_ids])
        positions, delta = recorder.positions(ids, torch.tensor(worked.grid_thw))
        assert positions[:, 0].tolist() == [list(row) for row in worked.position_ids], name
        assert delta == worked.rope_delta, name


def main() -> None:
    """Record every case, then write both files."""
    torch.set_grad_enabled(False)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_layouts(folder)
        recorders = {
            tied: Recorder(write_checkpoint(folder / f"tied-{tied}", tied=tied))
            for tied in (True, False)
        }
        check_hand_worked(recorders[True])
        for case in CASES:
            print(case)
            plain = case.removeprefix("untied_")
            tied, shown = plain == case, SHOWN.get(plain, [])
            recorded = recorders[tied].record(CONVERSATIONS[plain], shown)
            print("    tokens", len(recorded["input_ids"]), recorded["grid_thw"].tolist())
            arrays.update({f"{case}/{array}": recorded.pop(array) for array in ARRAYS})
            conversation = CONVERSATIONS[plain]
            about[case] = {"tied": tied, "messages": conversation, "pictures": shown, **recorded}
    assert arrays["wide_image/grid_thw"].tolist() == [[1, 2, 128]]
    assert arrays["tall_image/grid_thw"].tolist() == [[1, 72, 2]]
    np.savez(RECORDING, allow_pickle=False, **arrays)
    assert RECORDING.stat().st_size <= MAX_BYTES, f"{RECORDING.stat().st_size} bytes"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    recording = {"date": str(datetime.date.today()), "versions": versions, "cases": about}
    DESCRIPTION.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for path in (RECORDING, DESCRIPTION):
        print(f"{path.name}: {path.stat().st_size} bytes")


def _expand(text: str, grid: torch.Tensor) -> str:
    parts = text.split("<|image_pad|>")
    assert len(parts) == len(grid) + 1
    slots = ["<|image_pad|>" * int(size.prod() // MERGE**2) for size in grid]
    return parts[0] + "".join(slot + part for slot, part in zip(slots, parts[1:], strict=True))


def _content(path: Path) -> Any:
    text = path.read_text("utf-8")
    return json.loads(text) if path.suffix == ".json" else text


if __name__ == "__main__":
    main()
