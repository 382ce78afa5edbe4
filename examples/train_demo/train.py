"""Train the demo model on drawn pictures: `python -m examples.train_demo.train --help`.

Runs on CPU as one process, or as several single-thread processes that average gradients over gloo
when the environment sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (see `launch.sh`). A run
ends after `--minutes` of training; it saves itself every few minutes and goes on from there when
started again with the same `--out`.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from examples.train_demo import canvases, losses, scenes
from examples.train_demo import labels as L
from examples.train_demo.boxes import overlap
from examples.train_demo.model import BOX_CLASSES, N_EDGE, DemoModel, make_config
from examples.train_demo.optim import Muon
from examples.train_demo.options import Options, parse
from examples.train_demo.questions import Sample, make_sample
from examples.train_demo.rows import KINDS, Batch, RowMaker, collate

Values = defaultdict[str, float]  # name of a measure to its value

EVAL_SEED: Final = 2**41
LOG_EVERY: Final = 20  # steps
BOX_OF_POINTED: Final = slice(4, 8)
GRADIENT_CLIP: Final = 1.0  # of the AdamW part; Muon's update has a fixed size


class Trainer:
    """Model, optimizers and data of one run; every process has one."""

    def __init__(self, options: Options) -> None:
        self.o = options
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        torch.manual_seed(options.seed)
        tokenizer = Tokenizer.from_file(str(options.tokenizer))
        self.maker = RowMaker(tokenizer)
        self.align = losses.Alignment(tokenizer)
        self.model = DemoModel(make_config(tokenizer.get_vocab()), bfloat16=not options.float32)
        self.step = 0
        self.elapsed = 0.0
        if options.init:
            self._start_from(options.init)
        if options.freeze_vision:
            for part in (
                self.model.hf.model.visual,
                self.model.aux,
                self.model.iaux,
                self.model.paux,
                self.model.baux,
            ):
                part.requires_grad_(False)
        if options.freeze_language:
            for part in (
                self.model.hf.model.language_model,
                self.model.taux,
                self.model.raux,
                self.model.rbaux,
            ):
                part.requires_grad_(False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.muons: list[tuple[float, Muon]] = []
        groups: list[dict[str, Any]] = []
        for rate, of_vision in ((1.0, False), (options.vision_rate, True)):
            matrices, tables, vectors = self._groups(of_vision)
            if matrices:
                self.muons.append((rate, Muon(matrices, self.rank, self.world)))
            groups += [
                {"params": tables, "weight_decay": options.weight_decay, "rate": rate},
                {"params": vectors, "weight_decay": 0.0, "rate": rate},
            ]
        groups = [group for group in groups if group["params"]]
        self.clipped = [parameter for group in groups for parameter in group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), eps=1e-9)
        self._resume()
        seed = options.seed * 1_000_003 + self.rank * 7919 + self.step
        self.rng = random.Random(seed)
        self.canvas_rng = random.Random(seed + 1)
        self._eval: list[tuple[int, Batch]] | None = None

    def _start_from(self, init: Path) -> None:
        """Weights of another run, or of a model folder, which has none of the training heads.

        Heads that the weights lack start at zero, so that they pull at nothing before they have
        learned something.
        """
        model = self.model
        if init.is_dir():
            model.hf = Qwen2VLForConditionalGeneration.from_pretrained(init, dtype=torch.float32)
            missing = [f"{head}.{part}" for head in model.HEADS for part in ("weight", "bias")]
        else:
            state = torch.load(init, weights_only=True)
            missing = model.load_state_dict(state.get("model", state), strict=False).missing_keys
        model.hf.tie_weights()
        parameters = dict(model.named_parameters())
        for name in missing:
            nn.init.zeros_(parameters[name])

    def _groups(
        self, of_vision: bool
    ) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """Matrices of layers, other matrices, vectors: of the vision tower or of the rest."""
        matrices: list[nn.Parameter] = []
        tables: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad or ("visual." in name) != of_vision:
                continue
            if parameter.ndim == 2 and ("layers." in name or "visual.blocks." in name):
                matrices.append(parameter)
            else:
                (tables if parameter.ndim >= 2 else vectors).append(parameter)
        return matrices, tables, vectors

    def run(self) -> None:
        """Train until the time is up; evaluate and save on the way and at the end."""
        started, last_eval = time.time() - self.elapsed, time.time()
        last_save = last_eval
        budget = self.o.minutes * 60
        fraction = self.elapsed / budget
        average: dict[str, float] = {}
        while fraction < 1 and self.step < self.o.max_steps:
            self._set_rate(fraction)
            clock = time.time() - started
            due = self.rank == 0 and time.time() - last_eval > self.o.eval_minutes * 60
            values, (clock, evaluate) = self._step(clock, due)
            fraction = clock / budget
            self.elapsed = clock
            for name, value in values.items():
                average[name] = (
                    value if name not in average else 0.95 * average[name] + 0.05 * value
                )
            if self.rank == 0 and self.step % LOG_EVERY == 0:
                shown = " ".join(f"{name} {value:.3f}" for name, value in average.items())
                print(
                    f"step {self.step} {clock:.0f}s {shown} load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
            if evaluate:
                self.report()
                last_eval = last_save = time.time()
            elif time.time() - last_save > self.o.save_minutes * 60:
                self.save()
                last_save = time.time()
        self.report()

    def _set_rate(self, fraction: float) -> None:
        late = max(0.0, (fraction - self.o.decay_from) / (1 - self.o.decay_from))
        rate = min(1.0, (self.step + 1) / 40) * max(
            0.02, 0.5 * (1 + math.cos(math.pi * min(1.0, late)))
        )
        for group in self.adamw.param_groups:
            group["lr"] = self.o.lr * rate * group["rate"]
        self.rate = rate

    def _step(self, clock: float, due: bool) -> tuple[dict[str, float], tuple[float, bool]]:
        batches = list(self._batches())
        answer_tokens = sum(len(b.targets) for b in batches) or 1
        values: Values = defaultdict(float)
        for batch in batches:
            loss = self._row_loss(batch, answer_tokens, len(batches), values)
            loss.backward()
        if self.canvas_rng.random() < self.o.canvases:
            loss = self._canvas_loss(values) / (2 if batches else 1)
            loss.backward()
        clock, evaluate = self._average_gradients(clock, due)
        torch.nn.utils.clip_grad_norm_(self.clipped, GRADIENT_CLIP)
        for rate, muon in self.muons:
            muon.step(self.o.muon_lr * self.rate * rate, self.o.weight_decay)
        self.adamw.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return dict(values), (clock, evaluate)

    def _batches(self) -> Iterator[Batch]:
        kinds = {k: v * (1 - self.o.text) / (1 - KINDS["text"]) for k, v in KINDS.items()} | {
            "text": self.o.text
        }
        count = self.o.rows // self.world
        if self.o.freeze_language:
            pictures = [canvases.picture(self.rng, self.o.scenes) for _ in range(count)]
            rows = [self.maker.row(Sample((picture,), ()), []) for picture in pictures]
        else:
            rows = [
                self.maker.training_row(self.rng, easy=self.o.easy, kinds=kinds)
                for _ in range(count)
            ]
        rows.sort(key=lambda row: len(row.ids))
        for i in range(0, count, self.o.micro):
            yield collate(rows[i : i + self.o.micro])

    def _row_loss(self, batch: Batch, answer_tokens: int, parts: int, values: Values) -> Tensor:
        model = self.model
        with torch.set_grad_enabled(not self.o.freeze_vision):
            cells = None
            if batch.pixels is not None:
                cells, _ = model.vision(batch.pixels, batch.patch_positions, batch.groups)
        if self.o.freeze_language:
            assert cells is not None
            return self._cell_loss(cells, batch.cell_labels, parts, values)
        ordered = cells[batch.order] if cells is not None else None
        out = model.text(
            batch.ids,
            batch.positions,
            batch.masks,
            ordered,
            batch.cells_at,
            batch.guides,
            batch.wanted,
        )
        next_token = F.cross_entropy(model.logits(out.hidden), batch.targets, reduction="none")
        loss = (next_token * batch.weights).sum() / answer_tokens
        values["loss"] += loss.item()
        if out.guided:
            guidance = out.guidance / (2 * out.guided)
            values["guide"] += guidance.item() / parts
            values["mass"] += out.looks_mass / out.guided / parts
            loss = loss + self.o.guidance * guidance / parts
            at, offset = [], 0
            for mask, guide in zip(batch.masks, batch.guides, strict=True):
                if guide is not None:
                    at.append(guide.at + offset)
                offset += len(mask)
            pointer = losses.pointer_loss(model.raux(out.pointing[torch.cat(at)]), batch.pointed)
            box = losses.box_loss(
                model.rbaux(out.pointing[torch.cat(at)]), batch.pointed[:, BOX_OF_POINTED]
            )
            values["pointer"] += pointer.item() / parts
            values["pointbox"] += box.item() / parts
            loss = loss + (0.1 * pointer + 0.1 * box) / parts
        if cells is not None:
            token = losses.token_loss(
                model.taux(out.early[batch.cells_at]), batch.cell_labels[batch.order]
            )
            values["token"] += token.item() / parts
            loss = loss + 0.15 * token / parts
            if not self.o.freeze_vision:
                loss = loss + self._cell_loss(cells, batch.cell_labels, parts, values)
        return loss

    def _cell_loss(self, cells: Tensor, table: Tensor, parts: int, values: Values) -> Tensor:
        cell = losses.cell_loss(self.model.aux(cells), self.model.iaux(cells), table)
        align = self.align(cells, self.model.embedding, table)
        box, edge = self._box_losses(cells, table)
        values["cell"] += cell.item() / parts
        values["align"] += align.item() / parts
        values["box"] += box.item() / parts
        values["edge"] += edge.item() / parts
        return (cell + 0.5 * align + self.o.boxes * (box + edge)) / parts

    def _box_losses(self, cells: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        box, edge = self.model.baux(cells).split((sum(BOX_CLASSES), 4 * N_EDGE), -1)
        return losses.box_loss(box, table[:, L.BOX]), losses.edge_loss(edge, table[:, L.EDGES])

    def _canvas_loss(self, values: Values) -> Tensor:
        canvas = canvases.batch(self.canvas_rng)
        cells, patches = self.model.vision(canvas.pixels, canvas.patch_positions, canvas.groups)
        patch = losses.patch_loss(self.model.paux(patches), canvas.patch_labels)
        cell = losses.cell_loss(self.model.aux(cells), self.model.iaux(cells), canvas.cell_labels)
        align = self.align(cells, self.model.embedding, canvas.cell_labels)
        values["canvas"] += cell.item()
        values["patch"] += patch.item()
        box, edge = self._box_losses(cells, canvas.cell_labels)
        return patch / 1.5 + cell + 0.5 * align + 0.5 * self.o.boxes * (box + edge)

    def _average_gradients(self, clock: float, due: bool) -> tuple[float, bool]:
        """All-reduce gradients together with the clock and the wish to evaluate of process 0."""
        signal = torch.tensor([clock if self.rank == 0 else 0.0, float(due)])
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in grads] + [signal])
            dist.all_reduce(flat)
            pieces = flat[:-2].div_(self.world).split([p.numel() for p in self.parameters])
            grads = [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]
            signal = flat[-2:]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        return float(signal[0]), bool(signal[1] > 0)

    def report(self) -> None:
        """Evaluate, print, append to the log and save."""
        result = {} if self.o.freeze_language else self.evaluate()
        result |= {"boxes": self.box_overlap()}
        if self.rank != 0:
            return
        result |= {"step": self.step, "seconds": round(self.elapsed)}
        print("EVAL", json.dumps(result), flush=True)
        with (self.o.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(result) + "\n")
        self.save()

    def save(self) -> None:
        """Write what a later run goes on from; the first of the processes does it for all."""
        if self.rank != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "adamw": self.adamw.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        temporary = self.o.out / "last.tmp"
        torch.save(state, temporary)
        temporary.replace(self.o.out / "last.pt")

    def _resume(self) -> None:
        self.o.out.mkdir(parents=True, exist_ok=True)
        path = self.o.out / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.adamw.load_state_dict(state["adamw"])
        # Muon's momentum is a few dozen steps of memory; it is rebuilt rather than stored per
        # process.
        self.step, self.elapsed = state["step"], state["elapsed"]

    @torch.no_grad()
    def box_overlap(self, count: int = 80) -> str:
        """Share of things whose box is found (intersection over union of 0.7) and mean overlap.

        Read off the middle cell by the head of the vision tower, and off the last written
        coordinate by the head of the language model: what the model sees, and what it has when it
        writes.
        """
        rng = random.Random(EVAL_SEED + 2)
        samples = [make_sample(rng, "shapes") for _ in range(count)]
        seen, known = [], []
        for sample in samples:
            questions = [q for q in sample.questions if q.family == "where"]
            row = self.maker.row(sample, questions)
            batch = collate([row])
            assert batch.pixels is not None
            cells, _ = self.model.vision(batch.pixels, batch.patch_positions, batch.groups)
            found = losses.boxes_of(self.model.baux(cells)[:, : sum(BOX_CLASSES)])
            picture, middles = sample.pictures[0], row.media[0].labels.centre_of
            seen += [
                overlap(tuple(found[cell].tolist()), picture.box(i))
                for i, cell in enumerate(middles)
            ]
            if self.o.freeze_language or row.guide is None:
                continue
            out = self.model.text(
                batch.ids, batch.positions, batch.masks, cells[batch.order], batch.cells_at
            )
            used = batch.pointed[:, 4] > 0
            said = losses.boxes_of(self.model.rbaux(out.pointing[row.guide.at[used]]))
            true = (batch.pointed[used, BOX_OF_POINTED] - 1) / 100
            known += [
                overlap(tuple(a), tuple(b))
                for a, b in zip(said.tolist(), true.tolist(), strict=True)
            ]
        return " ".join(
            f"{np.mean(np.array(values) >= 0.7):.2f}/{np.mean(values):.2f}"
            for values in (seen, known)
            if values
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Share of exactly right answers per family: trained phrasings / held-out phrasings.

        The argmax of every answer token under the right prefix equals greedy decoding as far as
        exact match goes.
        """
        if self._eval is None:
            self._eval = self._eval_batches()
        right: list[Counter[str]] = [Counter(), Counter()]
        total: list[Counter[str]] = [Counter(), Counter()]
        for new_phrasing, batch in self._eval:
            hits = (predict(self.model, batch) == batch.targets) | ~batch.in_words
            position = 0
            for answers in batch.answers:
                for answer in answers:
                    family = answer.family
                    right[new_phrasing][family] += bool(
                        hits[position : position + answer.tokens].all()
                    )
                    total[new_phrasing][family] += 1
                    position += answer.tokens
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            dist.all_gather_object(gathered, (right, total))
            right = [sum((r[i] for r, _ in gathered), Counter()) for i in (0, 1)]
            total = [sum((t[i] for _, t in gathered), Counter()) for i in (0, 1)]
        table = {
            family: "/".join(f"{right[i][family] / max(1, total[i][family]):.2f}" for i in (0, 1))
            for family in sorted(total[0])
        }
        macro = [
            round(sum(right[i][f] / total[i][f] for f in total[i]) / max(1, len(total[i])), 4)
            for i in (0, 1)
        ]
        return {"macro": macro, "families": table}

    def _eval_batches(self) -> list[tuple[int, Batch]]:
        out = []
        for new_phrasing in (0, 1):
            rng = random.Random(EVAL_SEED + new_phrasing)
            rows = []
            for _ in range(self.o.eval_rows):
                kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
                sample = make_sample(rng, kind, new_phrasing=bool(new_phrasing), unseen_text=True)
                rows.append(self.maker.row(sample, sample.questions))
            rows.sort(key=lambda row: len(row.ids))
            rows = rows[self.rank :: self.world]
            out += [(new_phrasing, collate(rows[i : i + 16])) for i in range(0, len(rows), 16)]
        return out


def predict(model: DemoModel, batch: Batch) -> Tensor:
    """[T] most likely token at every answer position of a batch."""
    cells = None
    if batch.pixels is not None:
        cells = model.vision(batch.pixels, batch.patch_positions, batch.groups)[0][batch.order]
    out = model.text(
        batch.ids, batch.positions, batch.masks, cells, batch.cells_at, wanted=batch.wanted
    )
    return model.logits(out.hidden).argmax(-1)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    torch.set_num_threads(1)
    for name in scenes.TRAINED_FONTS:
        scenes.load_font(name, 30, strict=True)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo")
    Trainer(options).run()


if __name__ == "__main__":
    main()
