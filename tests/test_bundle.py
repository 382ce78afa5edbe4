"""Several quantizations in one artifact: each as if alone, what they share stored once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import Wishes, convert
from mlx_qwenvl import CheckpointError, OptionError, QwenVLError, load
from mlx_qwenvl.weights.bundle import MANIFEST, open_bundle, variant_files
from mlx_qwenvl.weights.files import list_tensors
from mlx_qwenvl.weights.resolve import resolve_model
from tests.command_lines import GENERATE, run
from tests.conversions import answer, assert_same_weights, bits_of, tensors_in
from tests.fake_hub import FakeHub, serving
from tests.golden.tiny import write_checkpoint

APART = ("4bit", "6bit", "8bit")  # share the vision tower alone
MIXED = ("mixed_4_6", "6bit", "4bit")  # share matrices two by two
SAME = ("4bit", "mixed_4_6", "none")  # with a topology that makes the first two equal
TOPOLOGY = "text: mxfp4\nembeddings: mxfp4\nhead: 8bit\n"

Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    return write_checkpoint(folder, dtype="bfloat16", tied=False, shards=2)


@pytest.fixture(scope="session")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder and a single file with three variants, and a folder of each variant alone."""
    place = tmp_path_factory.mktemp("made")
    convert(source, place / "folder", Wishes(MIXED))
    convert(source, place / "single.safetensors", Wishes(MIXED), single_file=True)
    for name in MIXED:
        convert(source, place / name, name)
    return {path.stem: path for path in place.iterdir()}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder that may be spoiled."""
    return Path(shutil.copytree(made["folder"], tmp_path / "folder"))


# --- Each as if alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, *MIXED])
@pytest.mark.parametrize("form", ["folder", "single"])
def test_a_variant_is_the_model_that_its_recipe_alone_gives(
    made: dict[str, Path], form: str, variant: str | None
) -> None:
    found, alone = load(made[form], variant=variant), load(made[variant or MIXED[0]])
    assert_same_weights(found.model, alone.model)
    np.testing.assert_array_equal(answer(found), answer(alone))


@pytest.mark.parametrize("recipes", [APART, SAME, ("none", "8bit"), ("nvfp4", "mxfp8", "3bit")])
@pytest.mark.parametrize("single_file", [False, True])
def test_every_combination_gives_what_its_recipes_alone_give(
    source: Path, tmp_path: Path, recipes: tuple[str, ...], single_file: bool
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(TOPOLOGY)
    topology = str(rules) if recipes == SAME else None
    all_of_them = tmp_path / "all.safetensors"
    convert(source, all_of_them, Wishes(recipes, topology=topology), single_file=single_file)
    for recipe in recipes:
        convert(source, tmp_path / recipe, Wishes((recipe,), topology=topology))
        found = load(all_of_them, variant=recipe)
        assert_same_weights(found.model, load(tmp_path / recipe).model)


@pytest.mark.parametrize("recipes", [APART, MIXED])
@pytest.mark.parametrize("single_file", [False, True])
def test_what_variants_share_is_stored_once(
    source: Path, tmp_path: Path, recipes: tuple[str, ...], single_file: bool
) -> None:
    together = tmp_path / "together.safetensors"
    outcome = convert(source, together, Wishes(recipes), single_file=single_file)
    different: dict[tuple[str, object], int] = {}
    for recipe in recipes:
        alone = convert(source, tmp_path / recipe, recipe)
        assert outcome.variants[recipe] == alone.output_bytes
        stored = tensors_in(tmp_path / recipe)
        for name, array in stored.items():
            # Matrices are shared whole: scales and biases go with their packed weight.
            path, _, part = name.rpartition(".")
            owner = stored[f"{path}.weight"] if part in ("scales", "biases") else array
            different[name, bits_of(owner)] = array.nbytes
    assert outcome.output_bytes == sum(different.values())
    files = [together] if single_file else sorted(together.rglob("*.safetensors"))
    arrays = [item for file in files for item in tensors_in(file).items()]
    held = sum(array.nbytes for name, array in arrays if not name.startswith("files/"))
    assert held == outcome.output_bytes


def test_the_default_is_an_ordinary_folder_without_its_manifest(
    folder: Path, made: dict[str, Path]
) -> None:
    (folder / MANIFEST).unlink()
    shutil.rmtree(folder / "variants")
    found, alone = load(folder), load(made[MIXED[0]])
    assert_same_weights(found.model, alone.model)
    assert (folder / "config.json").read_bytes() == (made[MIXED[0]] / "config.json").read_bytes()
    top, of_one = tensors_in(folder), tensors_in(made[MIXED[0]])
    assert top.keys() == of_one.keys()
    assert set(list_tensors(folder)) == set(list_tensors(made[MIXED[0]]))


@pytest.mark.parametrize("variant", MIXED)
def test_a_variant_needs_no_other_ones_files(
    folder: Path, made: dict[str, Path], variant: str
) -> None:
    needed = set(variant_files(folder, variant))
    spared = [
        file
        for file in folder.rglob("*.safetensors*")
        if file.relative_to(folder).as_posix() not in needed
    ]
    assert len(spared) > 2
    for file in spared:
        file.unlink()
    assert_same_weights(load(folder, variant=variant).model, load(made[variant]).model)


def test_only_what_a_variant_needs_is_opened_of_a_single_file(made: dict[str, Path]) -> None:
    with open_bundle(made["single"], "6bit") as bundle:
        keys = [tensor.key for tensor in bundle.tensors.values()]
        assert (bundle.folder / "tokenizer.json").exists()
    assert {key.rpartition("/")[0] for key in keys} == {"", "6bit", "mixed_4_6+6bit"}
    assert not bundle.folder.exists()
    alone = tensors_in(made["6bit"])
    assert sorted(key.rpartition("/")[2] for key in keys) == sorted(alone)


def test_the_small_files_of_a_single_file_are_the_folders(made: dict[str, Path]) -> None:
    names = {file.name for file in made["folder"].iterdir() if file.suffix != ".safetensors"}
    names -= {"variants", "model.safetensors.index.json", MANIFEST}
    with open_bundle(made["single"]) as bundle:
        assert {file.name for file in bundle.folder.iterdir()} == names | {MANIFEST}
        for name in names:
            assert (bundle.folder / name).read_bytes() == (made["folder"] / name).read_bytes()


def test_a_renamed_single_file_still_opens(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(made["single"], tmp_path / "sent to you (1).safetensors")
    found = load(tmp_path / "sent to you (1).safetensors", variant="4bit")
    assert_same_weights(found.model, load(made["4bit"]).model)


def test_a_linked_folder_opens(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made["folder"])
    assert_same_weights(load(tmp_path / "link", variant="6bit").model, load(made["6bit"]).model)


# --- Bad choices and bad manifests --------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "single"])
@pytest.mark.parametrize("variant", ["5bit", "", "4BIT", "../4bit", "default"])
def test_an_unknown_variant_lists_those_there(
    made: dict[str, Path], form: str, variant: str
) -> None:
    with pytest.raises(OptionError, match=r"it has mixed_4_6, 6bit, 4bit$"):
        load(made[form], variant=variant)


@pytest.mark.parametrize("name", ["4bit", "mixed_4_6"])
def test_a_model_without_variants_has_none(tiny_folder: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"has no variants, so no '{name}'"):
        load(tiny_folder, variant=name)


def test_the_only_variant_of_a_folder_can_be_named(made: dict[str, Path]) -> None:
    assert_same_weights(load(made["6bit"], variant="6bit").model, load(made["6bit"]).model)
    with pytest.raises(OptionError, match=r"it has 6bit$"):
        load(made["6bit"], variant="4bit")


def test_a_file_of_weights_alone_is_refused_with_a_reason(made: dict[str, Path]) -> None:
    file = next(made["folder"].glob("*.safetensors"))
    with pytest.raises(CheckpointError, match="holds weights alone; expected a model folder"):
        load(file)


def set_files(value: object) -> Damage:
    return lambda manifest: manifest["variants"]["6bit"].update(files=value, prefixes=value)


def set_top(**values: object) -> Damage:
    return lambda manifest: manifest.update(values)


# What is done to a manifest, and what the error has to say when variant 6bit is wanted.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a later version": (set_top(format_version=2), "format version 2, expected 1"),
    "no version": (lambda m: m.pop("format_version"), "format version None"),
    "a version in words": (set_top(format_version="1"), "format version '1'"),
    "no variants": (lambda m: m.pop("variants"), "without variants"),
    "empty variants": (set_top(variants={}), "without variants"),
    "variants in a list": (set_top(variants=["6bit"]), "without variants"),
    "a variant that is a list": (set_top(variants={"6bit": []}), "of variant '6bit'"),
    "a variant that is a text": (set_top(variants={"6bit": "a"}), "of variant '6bit'"),
    "a variant that is null": (set_top(variants={"6bit": None}), "no variant '6bit'"),
    "no files": (lambda m: m["variants"].update({"6bit": {}}), "of variant '6bit'"),
    "files in one text": (set_files("model.safetensors"), "of variant '6bit'"),
    "files that are numbers": (set_files([1, 2]), "of variant '6bit'"),
}
PATHS = [
    "../outside.safetensors",
    "variants/../../outside.safetensors",
    "/etc/passwd",
    "/absolute.safetensors",
    "..",
    ".",
    "",
    "*.safetensors",
    "[a].safetensors",
    "pytorch_model.bin",
    "model\0.safetensors",
    "model\n.safetensors",
    "a//b.safetensors",
]


def spoil(folder: Path, damage: Damage) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    damage(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def with_small_files(single: Path, output: Path, files: dict[str, bytes]) -> Path:
    """A single file with other small files; what matters here is read before the weights."""
    with open_bundle(single) as bundle:
        small = {file.name: file.read_bytes() for file in bundle.folder.iterdir()} | files
    stored = {f"files/{n}": np.frombuffer(data, np.uint8) for n, data in small.items()}
    save_file(stored, output, {"format": "mlx"})
    return output


def one_line(path: Path, variant: str | None, error: type[QwenVLError]) -> str:
    with pytest.raises(error) as raised:
        load(path, variant=variant)
    return str(raised.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_one_clear_error(
    folder: Path, made: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    change, words = DAMAGES[damage]
    spoil(folder, change)
    assert words in one_line(folder, "6bit", QwenVLError)
    assert_same_weights(load(folder).model, load(made[MIXED[0]]).model)
    with open_bundle(made["single"]) as bundle:
        manifest = json.loads((bundle.folder / MANIFEST).read_text())
    change(manifest)
    files = {MANIFEST: json.dumps(manifest).encode()}
    single = with_small_files(made["single"], tmp_path / "s.safetensors", files)
    assert words in one_line(single, "6bit", QwenVLError)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_manifest_that_is_no_object_is_one_clear_error(
    folder: Path, made: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert MANIFEST in one_line(folder, "6bit", CheckpointError)
    single = with_small_files(made["single"], tmp_path / "s.safetensors", {MANIFEST: content})
    assert MANIFEST in one_line(single, None, CheckpointError)


@pytest.mark.parametrize("path", PATHS)
def test_a_manifest_that_leads_elsewhere_is_refused(folder: Path, path: str) -> None:
    spoil(folder, set_files(["model-00001-of-00003.safetensors", path]))
    said = one_line(folder, "6bit", CheckpointError)
    assert "expected a safetensors file in its folder" in said and "\n" not in said


def test_a_manifest_that_names_a_missing_file_says_which(folder: Path) -> None:
    spoil(folder, set_files(["variants/9bit/model.safetensors"]))
    assert "lacks" in one_line(folder, "6bit", CheckpointError)


@pytest.mark.parametrize("default", [None, 3, [], {}, "5bit", True])
def test_a_default_that_is_none_of_the_variants_is_one_clear_error(
    made: dict[str, Path], tmp_path: Path, default: object
) -> None:
    with open_bundle(made["single"]) as bundle:
        manifest = json.loads((bundle.folder / MANIFEST).read_text()) | {"default": default}
    files = {MANIFEST: json.dumps(manifest).encode()}
    single = with_small_files(made["single"], tmp_path / "s.safetensors", files)
    assert "default is none of its variants" in one_line(single, None, CheckpointError)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/tmp/evil.json", "a/b.json", "..", ".", "", "x\0"]
)
def test_small_files_that_lead_elsewhere_are_not_written(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    single = with_small_files(made["single"], tmp_path / "s.safetensors", {name: b"evil"})
    before = sorted(tmp_path.rglob("*"))
    assert "damaged" in one_line(single, None, CheckpointError)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/evil.json").exists()


def test_two_prefixes_with_one_name_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with open_bundle(made["single"]) as bundle:
        manifest = json.loads((bundle.folder / MANIFEST).read_text())
        tensors = mx.load(str(made["single"]))
    assert isinstance(tensors, dict)
    everything = sorted({f"{n.rpartition('/')[0]}/" for n in tensors if "/" in n})
    manifest["variants"]["6bit"]["prefixes"] = ["", *everything]
    tensors[f"files/{MANIFEST}"] = mx.array(list(json.dumps(manifest).encode()), mx.uint8)
    mx.save_safetensors(str(tmp_path / "s.safetensors"), tensors)
    assert "is stored twice" in one_line(tmp_path / "s.safetensors", "6bit", CheckpointError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_a_cut_single_file_is_one_clear_error(
    made: dict[str, Path], tmp_path: Path, share: float
) -> None:
    data = made["single"].read_bytes()
    (tmp_path / "s.safetensors").write_bytes(data[: int(share * len(data))])
    assert "cut short" in one_line(tmp_path / "s.safetensors", None, CheckpointError)


# --- From the command line and from the Hub -----------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "single"])
def test_the_command_line_answers_with_a_variant(made: dict[str, Path], form: str) -> None:
    options = ("--max-tokens", "4", "--temperature", "0", "Hello")
    found = run(*GENERATE, "--model", made[form], "--variant", "6bit", *options)
    alone = run(*GENERATE, "--model", made["6bit"], *options)
    assert (found.code, found.err, found.out) == (0, "", alone.out)
    refused = run(*GENERATE, "--model", made[form], "--variant", "5bit", *options)
    assert (refused.code, refused.out) == (2, "")
    assert len(refused.err_lines) == 1 and "it has mixed_4_6, 6bit, 4bit" in refused.err


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub with one repository of three variants, for this process and with an empty cache."""
    from huggingface_hub import constants

    convert(source, tmp_path / "repo", Wishes(APART))
    files = {
        file.relative_to(tmp_path / "repo").as_posix(): file.read_bytes()
        for file in (tmp_path / "repo").rglob("*")
        if file.is_file()
    }
    with serving(FakeHub("people/variants", files)) as server:
        names = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", names)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


@pytest.mark.parametrize("variant", [None, *APART])
def test_a_download_fetches_the_files_of_its_variant_alone(
    hub: FakeHub, made: dict[str, Path], tmp_path: Path, variant: str | None
) -> None:
    found = load("people/variants", variant=variant)
    wanted = set(variant_files(tmp_path / "repo", variant or APART[0]))
    fetched = {name for name in hub.sent if name.endswith(".safetensors")}
    assert fetched == wanted
    assert_same_weights(found.model, load(tmp_path / "repo", variant=variant).model)


@pytest.mark.parametrize("variant", ["6bit", "8bit"])
def test_the_second_use_of_a_variant_asks_nothing(hub: FakeHub, variant: str) -> None:
    first = resolve_model("people/variants", variant)
    hub.requests.clear()
    assert resolve_model("people/variants", variant) == first
    assert hub.requests == []


def test_a_second_variant_fetches_only_what_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    first = resolve_model("people/variants", "6bit")
    before = dict(hub.sent)
    second = resolve_model("people/variants", "8bit")
    assert first == second
    new = {n for n in hub.sent if hub.sent[n] != before.get(n, 0) and n.endswith(".safetensors")}
    assert new == {"variants/8bit/model-00001-of-00001.safetensors"}
    for variant in ("6bit", "8bit"):
        found, expected = (load(p, variant=variant) for p in (second, tmp_path / "repo"))
        assert_same_weights(found.model, expected.model)


def test_an_unknown_variant_on_the_hub_fetches_no_weights(hub: FakeHub) -> None:
    with pytest.raises(OptionError, match="it has 4bit, 6bit, 8bit"):
        load("people/variants", variant="5bit")
    assert not any(name.endswith(".safetensors") for name in hub.sent)
