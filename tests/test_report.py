"""The report: its figures are what they say, and its page shows them without a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlx.core as mx
import numpy as np
import pytest

from convert import Wishes, convert
from convert.convert import CALIBRATION_SEED
from convert.pictures import builtin_pictures
from convert.reporting import losses
from convert.reporting.facts import Report
from convert.reporting.losses import module_losses
from convert.reporting.page import linear, logarithmic, render_page
from convert.reporting.page import number as in_words
from convert.reporting.quality import MAX_TOKENS, answer_logits, kl_divergence, measure, record
from convert.reporting.report import SEED, report, write_report
from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.files import read_rows
from mlx_qwenvl.weights.resolve import DEMO_FOLDER
from tests.golden.tiny import write_checkpoint

RECIPES = ("3bit", "4bit", "8bit")
HOSTILE = "<script>alert(1)</script>\"'&\u202e"
VOID = {"meta", "img", "br", "link", "hr"}


def made(
    source: Path, output: Path, wishes: Wishes, *, name: str = "demo", single_file: bool = False
) -> Report:
    """A conversion's report on four prompts."""
    outcome = convert(source, output, wishes, name=name, single_file=single_file)
    return report(source, outcome, wishes, name=name, seconds=1.25, peak_bytes=2**28, prompts=4)


@pytest.fixture(scope="module")
def of_demo(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The embedded model in three recipes."""
    output = tmp_path_factory.mktemp("demo") / "out"
    wishes = Wishes(recipes=RECIPES, vision_bits=8)
    outcome = convert(DEMO_FOLDER, output, wishes)
    return report(
        DEMO_FOLDER, outcome, wishes, name="demo", seconds=83.4, peak_bytes=2**28, prompts=12
    )


@pytest.fixture(scope="module")
def page(of_demo: Report) -> str:
    """Its page."""
    return render_page(of_demo.to_dict())


def found_losses(source: Path, output: Path) -> dict[str, float]:
    with open_bundle(source) as before, open_bundle(output) as after:
        return module_losses(before, after, Config.from_folder(before.folder))


# What is measured


def test_a_model_does_not_diverge_from_itself(demo: QwenVL) -> None:
    quality = measure(demo, demo, builtin_pictures(SEED, 4))
    assert (quality.mean_kl, quality.worst_kl, quality.top1) == (0, 0, 1)
    assert quality.mean_kl_error == 0
    assert quality.positions == sum(prompt.positions for prompt in quality.prompts) > 4


def test_divergence_is_the_definition_over_the_answers_positions(
    demo: QwenVL, tmp_path: Path
) -> None:
    other = load("demo", dtype="float32", quantize="3bit")
    prompts = builtin_pictures(SEED, 3)
    quality = measure(demo, other, prompts)
    divergences, same = [], []
    with (tmp_path / "logits").open("w+b") as file:
        recorded = record(demo, prompts, file)
    for case in recorded.cases:
        p, q = (whole_logits(vlm, case.prompt, case.token_ids) for vlm in (demo, other))
        begin = case.prompt.token_ids.size - 1
        p, q = p[begin : begin + case.positions], q[begin : begin + case.positions]
        np.testing.assert_allclose(answer_logits(other, case), q, rtol=0, atol=1e-3)
        same += list(p.argmax(axis=1) == q.argmax(axis=1))
        for row in range(case.positions):
            likely, other_likely = (np.exp(x[row]) / np.exp(x[row]).sum() for x in (p, q))
            divergences.append(float((likely * np.log(likely / other_likely)).sum()))
    assert quality.positions == len(divergences)
    assert quality.mean_kl == pytest.approx(np.mean(divergences), rel=1e-3)
    assert quality.worst_kl == pytest.approx(max(divergences), rel=1e-3)
    assert quality.top1 == np.mean(same)
    assert quality.mean_kl > 1e-4


def whole_logits(vlm: QwenVL, prompt: Prompt, answer: tuple[int, ...]) -> np.ndarray:
    """Logits [L, V] float64 of prompt and answer in one pass."""
    token_ids = np.concatenate([prompt.token_ids, np.array(answer, np.int32)])
    whole = Prompt(token_ids, prompt.slots)
    conversation = Conversation(vlm.model)
    filled = prefill(vlm.model, conversation, whole, step=PREFILL_STEP, all_logits=True)
    return np.array(filled.logits[0].astype(mx.float32)).astype(np.float64)


def test_the_token_that_ends_an_answer_is_compared_too(demo: QwenVL, tmp_path: Path) -> None:
    with (tmp_path / "logits").open("w+b") as file:
        (case,) = record(demo, builtin_pictures(SEED, 1), file).cases
    assert case.positions == len(case.token_ids) + 1 < MAX_TOKENS
    greedy = answer_logits(demo, case).argmax(axis=1)
    assert tuple(greedy[:-1]) == case.token_ids
    assert greedy[-1] in demo.end_ids


def test_divergence_of_rows_is_exact_and_never_negative() -> None:
    p = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    q = np.log(np.array([0.25, 0.25, 0.5], np.float32))
    assert kl_divergence(p + 100, q - 100) == pytest.approx(0.25 * math.log(2), abs=1e-5)
    rng = np.random.default_rng(0)
    for row in rng.normal(0, 10, (50, 1000)).astype(np.float32):
        assert kl_divergence(row, row) == 0
        assert 0 <= kl_divergence(row, row + np.float32(1e-6)) < 1e-9
    assert math.isnan(kl_divergence(p, np.array([0, np.nan, 0], np.float32)))


def test_an_eight_bit_modules_error_is_that_of_its_stored_codes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", dtype="bfloat16")
    convert(source, tmp_path / "out", "8bit")
    path = "model.layers.1.mlp.gate_proj"
    with open_bundle(source) as before, open_bundle(tmp_path / "out") as after:
        dense = stored(before.tensors[f"{path}.weight"])
        words = stored(after.tensors[f"{path}.weight"])
        scales, biases = (stored(after.tensors[f"{path}.{n}"]) for n in ("scales", "biases"))
    codes = words.astype("<u4").view(np.uint8).astype(np.float64)
    wide_scales, wide_biases = (np.repeat(x, 64, axis=1) for x in (scales, biases))
    lost = dense - (wide_scales * codes + wide_biases)
    expected = np.sqrt((lost**2).sum() / (dense**2).sum())
    assert found_losses(source, tmp_path / "out")[path] == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-4


def stored(tensor: Any) -> np.ndarray:
    array = read_rows(tensor, 0, tensor.shape[0])
    if tensor.dtype == "U32":
        return np.array(array)
    return np.array(array.astype(mx.float32)).astype(np.float64)


def test_errors_do_not_depend_on_the_size_of_blocks(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_folder, tmp_path / "out", "mxfp4")
    whole = found_losses(tiny_folder, tmp_path / "out")
    monkeypatch.setattr(losses, "BLOCK_BYTES", 1)  # a row at a time
    by_rows = found_losses(tiny_folder, tmp_path / "out")
    assert list(by_rows) == list(whole)
    assert list(by_rows.values()) == pytest.approx(list(whole.values()), rel=1e-6)
    assert whole["model.layers.0.mlp.gate_proj"] > 0.01


def test_a_dense_copy_loses_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    written = made(tiny_folder, tmp_path / "out", Wishes())
    (variant,) = written.variants
    # The patch embedding is among them, whose axes have another order in the copy.
    assert "visual.patch_embed.proj" in {module.path for module in variant.modules}
    assert {module.error for module in variant.modules} == {0}
    assert (variant.quality.mean_kl, variant.quality.top1) == (0, 1)
    assert "Every matrix is equal" in render_page(written.to_dict())


def test_a_wrong_order_of_axes_would_be_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    convert(tiny_folder, tmp_path / "out", Wishes(dtype="bfloat16"))
    found = found_losses(tiny_folder, tmp_path / "out")
    assert 0 < found["visual.patch_embed.proj"] < 2**-8  # bfloat16's rounding and no more


def test_more_bits_lose_less(of_demo: Report) -> None:
    three, four, eight = of_demo.variants
    for less, more in ((three, four), (four, eight)):
        assert less.quality.mean_kl > more.quality.mean_kl > 0
        assert less.nbytes < more.nbytes
        for worse, better in zip(less.modules, more.modules, strict=True):
            assert worse.path == better.path
            if worse.path.startswith("model."):
                assert worse.error and better.error and worse.error > 2 * better.error
            else:  # the vision tower is the same in all
                assert worse.error == better.error
    assert eight.quality.top1 > 0.9


def test_matrices_are_in_the_order_of_the_model(of_demo: Report) -> None:
    layers = [
        int(module.path.split(".")[2])
        for module in of_demo.variants[0].modules
        if module.path.startswith("model.layers.")
    ]
    assert layers == sorted(layers) and set(layers) == set(range(6))


def test_what_stays_dense_has_its_reason(of_demo: Report) -> None:
    (dense,) = [module for module in of_demo.variants[0].modules if module.dense_because]
    assert (dense.path, dense.format, dense.error) == ("visual.patch_embed.proj", "bfloat16", 0)
    assert "1176" in (dense.dense_because or "")


def test_figures_are_those_of_the_conversion(tmp_path: Path) -> None:
    wishes = Wishes(recipes=("Q8_0",), group_size=32)
    written = made(DEMO_FOLDER, tmp_path / "out", wishes)
    facts = written.to_dict()
    (variant,) = written.variants
    assert (written.seconds, written.peak_bytes, written.output) == (1.25, 2**28, "out")
    assert (variant.asked_for, variant.name) == ("Q8_0", "8bit-g32")
    assert any("Q8_0" in note for note in written.notes)
    with open_bundle(tmp_path / "out") as bundle:
        nbytes = sum(tensor.nbytes for tensor in bundle.tensors.values())
    assert variant.nbytes == nbytes == sum(part.nbytes for part in variant.parts)
    decoder = next(part for part in variant.parts if part.name == "decoder")
    assert 9 < decoder.bits_per_weight < 9.1  # 8 bits, and 2 * 16 for each group of 32
    assert facts["source"]["nbytes"] == 2 * facts["source"]["parameters"]
    vision = {m.dense_because for m in variant.modules if m.path.startswith("visual.")}
    assert vision == {"the vision tower is not quantized unless asked for"}


def test_a_report_measures_on_other_pictures_than_it_learned_from() -> None:
    assert SEED != CALIBRATION_SEED


# Where it is written


def test_a_folders_report_lies_in_it_and_disturbs_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    written = made(tiny_folder, output, Wishes(recipes=("4bit", "8bit")), name=str(tiny_folder))
    before = load(output).generate("What is this?", max_tokens=4, temperature=0).token_ids
    assert write_report(written, output) == (output / "report.json", output / "report.html")
    assert list(tmp_path.iterdir()) == [output]  # the logits are gone
    text = (output / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == written.to_dict()
    assert (output / "report.html").read_text(encoding="utf-8") == render_page(
        written.to_dict()
    ) + "\n"
    assert str(tmp_path) not in text and str(tiny_folder.parent) not in text
    assert written.source.name == tiny_folder.name
    for variant in (None, "4bit"):
        reply = load(output, variant=variant).generate("What is this?", max_tokens=4, temperature=0)
        assert reply.token_ids == before


def test_a_single_files_report_lies_beside_it(tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "v1.2.safetensors"
    written = made(tiny_folder, output, Wishes(recipes=("4bit", "8bit")), single_file=True)
    write_report(written, output)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {output.name, "v1.2.report.json", "v1.2.report.html"}
    assert [variant.name for variant in written.variants] == ["4bit", "8bit"]


def test_numbers_that_json_does_not_have_are_null(of_demo: Report, tmp_path: Path) -> None:
    facts = deepcopy(of_demo.to_dict())
    for variant in facts["variants"]:
        variant["modules"][-1]["error"] = None
        variant["quality"] |= dict.fromkeys(("mean_kl", "mean_kl_error", "worst_kl"))
        for prompt in variant["quality"]["prompts"]:
            prompt |= dict.fromkeys(("mean_kl", "worst_kl"))
    page = render_page(facts)
    assert "no number" in page and "There is no divergence" in page
    assert "At no position" not in page


def test_a_report_of_nan_is_json(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_checkpoint(source)
    weights = mx.load(str(source / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = mx.nan
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    written = made(source, tmp_path / "out", Wishes(("8bit",), allow_nonfinite=True))
    errors = {module.path: module.error for module in written.variants[0].modules}
    assert math.isnan(errors["model.layers.0.mlp.up_proj"] or 0)
    place, _ = write_report(written, tmp_path / "out")
    modules = json.loads(place.read_text(encoding="utf-8"))["variants"][0]["modules"]
    assert {m["path"] for m in modules if m["error"] is None} == {"model.layers.0.mlp.up_proj"}


# The page


class Page(HTMLParser):
    """A page as a browser would see it: elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_every_element_is_closed_and_every_id_is_one(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    named = [a["aria-labelledby"].split() for _, a in parsed.elements if "aria-labelledby" in a]
    assert {name for names in named for name in names} == set(ids)


def test_plots_are_drawings_with_titles_and_texts(page: str) -> None:
    plots = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    drawn = [ElementTree.fromstring(plot) for plot in plots]
    told = [plot for plot in drawn if plot.get("aria-hidden") != "true"]
    # Two sizes and parts, seven projections and four of the tower, the rest, KL and agreement.
    assert len(told) > 15
    for plot in told:
        assert plot.get("role") == "img"
        assert [plot[0].tag, plot[1].tag] == ["title", "desc"] and plot[0].text and plot[1].text
    for plot in drawn:
        _, _, width, height = map(float, plot.get("viewBox", "").split())
        for bar in plot.iter("rect"):
            assert 0 <= float(bar.get("x", "-1")) <= width
            assert 0 < float(bar.get("width", "0")) <= width
            assert 0 <= float(bar.get("y", "-1")) <= height
        for dot in plot.iter("path"):
            place = re.fullmatch(r"translate\((\S+) (\S+)\)", dot.get("transform", ""))
            if place is not None:
                assert 0 < float(place[1]) < width and 0 < float(place[2]) < height


def test_a_projections_dots_are_its_layers(page: str, of_demo: Report) -> None:
    titles = re.findall(r"<title>(.*?)</title>", page)
    shown = set(titles)
    for variant in of_demo.variants:
        for module in variant.modules:
            layer = re.fullmatch(r"(?:model\.layers|visual\.blocks)\.(\d+)\..+", module.path)
            if layer is not None:
                words = f"{in_words(module.error)} ({module.format})"
                assert f"{variant.name}, layer {layer[1]}: {words}" in shown


def test_the_page_holds_every_number_of_the_json(page: str, of_demo: Report) -> None:
    text = " ".join(" ".join(Page(page).text).split())
    told = 0
    for key, value in numbers(of_demo.to_dict()):
        words = {
            "nbytes": rf"{value:,}|{value / 1e6:.2f} MB",
            "peak_bytes": f"{value / 1e6:.2f} MB",
            "bits_per_weight": f"{value:.2f}",
            "top1": f"{100 * value:.2f} %",
            "seconds": f"{value:.1f} s" if value < 60 else f"{value // 60:.0f} min",
        }.get(key, f"{value:,}" if isinstance(value, int) else re.escape(in_words(value)))
        # Whole numbers: 3 is not there because 13 is.
        assert re.search(rf"(?<![\d.,])(?:{words})(?![.,]?\d)", text), (key, value)
        told += 1
    assert told > 200


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers with the names that they stand under."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if name != "report_version":  # of the JSON alone
                yield from numbers(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from numbers(entry, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def test_answers_stand_side_by_side_with_their_pictures(page: str, of_demo: Report) -> None:
    parsed = Page(page)
    text = " ".join(parsed.text)
    pictures = [attributes["src"] for tag, attributes in parsed.elements if tag == "img"]
    assert pictures == [url for answer in of_demo.answers for url in answer.pictures]
    for answer in of_demo.answers:
        assert set(answer.variants) == set(RECIPES)
        for said in (answer.question, answer.source, *answer.variants.values()):
            assert said in text
    changed = [a for a in of_demo.answers for said in a.variants.values() if said != a.source]
    assert page.count('class="differs"') == len(changed)


def test_the_page_asks_nothing_of_a_network(page: str) -> None:
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}:
                assert value.startswith("data:image/jpeg;base64,")
            elif name != "content":
                assert "url(" not in value and "://" not in value
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in style and "@import" not in style and "@font-face" not in style
    assert "default-src 'none'" in page


def test_hostile_names_stay_text(of_demo: Report) -> None:
    facts = deepcopy(of_demo.to_dict())
    hostile = HOSTILE.replace("\u202e", "\ufffd")  # what turns the line around is not kept
    facts["source"]["name"] = facts["output"] = facts["converter"] = HOSTILE
    facts["source"]["revision"] = HOSTILE
    facts["notes"] = [HOSTILE]
    facts["wishes"] |= {"topology": HOSTILE, "calibrate": HOSTILE, "dtype": HOSTILE}
    for variant in facts["variants"]:
        was, variant["name"] = variant["name"], f"{HOSTILE}{variant['name']}"
        variant["asked_for"] = HOSTILE
        for module in variant["modules"]:
            module["format"] = HOSTILE
        for prompt in variant["quality"]["prompts"]:
            prompt["question"] = HOSTILE
        for answer in facts["answers"]:
            answer["variants"][variant["name"]] = answer["variants"].pop(was) + HOSTILE
    for answer in facts["answers"]:
        answer |= {"question": HOSTILE, "source": HOSTILE}
    page = render_page(facts)
    parsed, plain = Page(page), Page(render_page(of_demo.to_dict()))
    assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in plain.elements}
    assert {n for _, a in parsed.elements for n in a} == {n for _, a in plain.elements for n in a}
    assert hostile in "".join(parsed.text) and "\u202e" not in page
    for plot in re.findall(r"<svg .*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(plot)


def test_scales_mark_round_numbers() -> None:
    scale = linear([0.03, 0.19], 100, most_ticks=4)
    assert scale.ticks == (0, 0.05, 0.1, 0.15)
    assert (scale.at(0), scale.at(0.19), scale.at(0.095)) == (0, 100, 50)
    decades = logarithmic([0, 3e-4, 0.2], 300)
    assert decades is not None
    assert decades.ticks == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1, 1))
    assert (decades.at(0), decades.at(1e-2), decades.at(1)) == (0, 150, 300)
    assert logarithmic([0.0], 300) is None
    many = logarithmic([1e-15, 0.5], 300)
    assert many is not None and len(many.ticks) == 9
