"""Uploading: what arrives is the converted folder and nothing else, and failures are one line."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from convert import Wishes, convert
from convert.__main__ import main
from convert.publishing.card import CardFacts, VariantFacts, model_card
from convert.publishing.share import card_facts
from convert.publishing.upload import upload, uploaded_files
from convert.source import source_repository, source_revision
from mlx_qwenvl import CheckpointError, QwenVLError, __version__
from tests.command_lines import PATIENCE, start
from tests.fake_hub_upload import OWNER, TOKEN, FakeHub, Repository, serving

# The Hub's client hands its HTTP library files in a way that this will no longer take one day.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = f"{OWNER}/tiny-4bit"
SECRET = b"hf_a_secret_that_lay_around"
FOUR = VariantFacts("4bit", "4bit", 1_250_000_000, 4.62, 0.0213, 0.9712)
EIGHT = VariantFacts("8bit", "8bit", 2_200_000, 8.5)


def facts(**changes: object) -> CardFacts:
    values: dict[str, object] = {
        "source": "Qwen/Qwen2-VL-2B-Instruct",
        "model_type": "qwen2_vl",
        "revision": "0" * 40,
        "variants": (FOUR,),
        "default": "4bit",
        "checksums": {"model.safetensors": "a" * 64, "config.json": "b" * 64},
        "converter_version": "0.1.0",
        "vision_bits": "16",
        "calibrated": None,
        "licence": "apache-2.0",
    }
    return CardFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that takes uploads, for a process whose client read its environment long ago."""
    with serving(FakeHub()) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A converted folder of three variants with things in it that are nobody's business."""
    top = tmp_path / "converted"
    (top / "variants" / "8bit").mkdir(parents=True)
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for number, name in enumerate((*shards, "variants/8bit/model-00001-of-00001.safetensors")):
        (top / name).write_bytes(bytes([number]) * 300_000)
    weight_map = {f"tensor.{number}": name for number, name in enumerate(shards)}
    eight = [shards[0], "variants/8bit/model-00001-of-00001.safetensors"]
    manifest = {
        "format_version": 1,
        "default": "4bit",
        "variants": {"4bit": {"files": list(shards)}, "8bit": {"files": eight}},
    }
    (top / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (top / "mlx_qwenvl.json").write_text(json.dumps(manifest))
    (top / "variants/8bit/model.safetensors.index.json").write_text("{}")
    for name in ("config.json", "tokenizer.json", "report.json", "report.html"):
        (top / name).write_text("{}")
    (top / "chat_template.jinja").write_text("{{ messages }}")
    (top / "README.md").write_text(model_card(facts()))
    return top


@pytest.fixture
def strays(folder: Path) -> None:
    """Files that look as if they belonged there and do not."""
    for name in (
        ".env",
        "credentials.json",
        "config.json.bak",
        "model-00003-of-00003.safetensors",
        "variants/8bit/model-00001-of-00001.safetensors.part",
        "variants/3bit.partial/model-00001-of-00001.safetensors",
        ".converted.partial/config.json",
        "old/config.json",
        ".git/config",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SECRET)


def send(folder: Path, name: str = NAME, *, private: bool = False) -> str:
    return upload(folder, name, private=private, progress=False)


# --- What is sent -------------------------------------------------------------------------------


def test_the_bytes_that_arrive_are_those_of_the_files(hub: FakeHub, folder: Path) -> None:
    assert send(folder) == f"{hub.address}/{NAME}"
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    arrived = hub.repositories[NAME].files
    assert arrived == {name: file.read_bytes() for name, file in files.items()}
    assert "variants/8bit/model-00001-of-00001.safetensors" in arrived


@pytest.mark.usefixtures("strays")
def test_nothing_else_of_the_folder_leaves_the_machine(hub: FakeHub, folder: Path) -> None:
    send(folder)
    assert set(hub.repositories[NAME].files) == set(uploaded_files(folder))
    assert SECRET not in hub.received
    assert not any(SECRET in data for data in hub.repositories[NAME].files.values())


@pytest.mark.parametrize("recipes", [("4bit",), ("4bit", "6bit")])
def test_all_that_the_converter_writes_is_sent(
    hub: FakeHub, tmp_path: Path, tiny_folder: Path, recipes: tuple[str, ...]
) -> None:
    converted = tmp_path / "written"
    convert(tiny_folder, converted, Wishes(recipes=recipes))
    send(converted)
    files = {f.relative_to(converted).as_posix(): f for f in converted.rglob("*") if f.is_file()}
    arrived = hub.repositories[NAME].files
    assert arrived == {name: file.read_bytes() for name, file in files.items()}


def test_a_commit_says_what_made_it(hub: FakeHub, folder: Path) -> None:
    send(folder)
    assert hub.repositories[NAME].messages == [
        f"Upload a model converted by mlx-qwenvl {__version__}"
    ]


def test_a_bare_name_goes_to_the_owner_of_the_token(hub: FakeHub, folder: Path) -> None:
    assert send(folder, "tiny-4bit") == f"{hub.address}/{NAME}"
    assert hub.repositories[NAME].files


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_as_private_as_asked(hub: FakeHub, folder: Path, private: bool) -> None:
    send(folder, private=private)
    assert hub.repositories[NAME].is_private is private


def test_nothing_private_goes_to_a_public_repository(hub: FakeHub, folder: Path) -> None:
    hub.repositories[NAME] = Repository(is_private=False)
    with pytest.raises(QwenVLError, match="public; choose another name"):
        send(folder, private=True)
    assert hub.repositories[NAME].files == {} and hub.stored == {}


def test_weights_of_an_earlier_upload_are_replaced_and_other_files_stay(
    hub: FakeHub, folder: Path
) -> None:
    old = ("model-00003-of-00003.safetensors", "variants/6bit/model.safetensors")
    others = {"notes.md": b"mine", "images/a.png": b"mine", "adapter.safetensors": b"mine"}
    before = dict.fromkeys((*old, "config.json"), b"old") | others
    hub.repositories[NAME] = Repository(is_private=False, files=before)
    send(folder)
    after = hub.repositories[NAME].files
    assert set(after) == {*uploaded_files(folder), *others}
    assert after["config.json"] == b"{}"


def test_a_full_precision_folder_of_one_file_is_enough(hub: FakeHub, tiny_folder: Path) -> None:
    send(tiny_folder)
    arrived = hub.repositories[NAME].files
    assert arrived == {file.name: file.read_bytes() for file in tiny_folder.iterdir()}


def test_nothing_is_printed_without_progress(
    hub: FakeHub, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    send(folder)
    assert capfd.readouterr() == ("", "")


def test_bars_are_shown_with_progress(
    hub: FakeHub, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(folder, NAME, private=False, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "100%" in err


# --- What goes wrong ----------------------------------------------------------------------------


def refused(folder: Path, name: str = NAME) -> str:
    with pytest.raises(QwenVLError) as caught:
        send(folder, name)
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message
    return message


def test_without_a_token_nobody_is_asked(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    assert "`hf auth login`" in refused(folder)
    assert hub.requests == []


def test_a_token_that_is_not_known_is_to_be_renewed(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "renew it with `hf auth login`" in refused(folder)
    assert hub.stored == {}


def test_a_token_that_may_not_write_there_is_said(hub: FakeHub, folder: Path) -> None:
    assert "may not write there" in refused(folder, "strangers/tiny-4bit")
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["a/b/c", "-tiny", "people/tiny..4bit", "people/ti ny", "", "/a"])
def test_a_name_that_the_hub_does_not_allow_is_not_asked_for(
    hub: FakeHub, folder: Path, name: str
) -> None:
    assert "expected owner/model" in refused(folder, name)
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_named(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert "the Hub cannot be reached" in refused(folder)


def test_offline_mode_is_obeyed(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import close_session

    close_session()  # a client keeps what it was made with
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(folder)
    assert hub.requests == []


def test_what_the_hub_says_is_passed_on_in_one_line(hub: FakeHub, folder: Path) -> None:
    words = "You have no space left\nfor private files"
    hub.refusals["/objects/batch"] = (HTTPStatus.PAYMENT_REQUIRED, words)
    message = refused(folder)
    assert "402 (Payment Required): You have no space left for private files" in message


def test_a_refused_commit_leaves_the_repository_empty(hub: FakeHub, folder: Path) -> None:
    hub.refusals["/commit/main"] = (HTTPStatus.CONFLICT, "somebody else was faster")
    assert "409 (Conflict): somebody else was faster" in refused(folder)
    assert hub.repositories[NAME].files == {}


def test_a_card_without_a_header_is_refused_before_anything_is_sent(
    hub: FakeHub, folder: Path
) -> None:
    (folder / "README.md").write_text("# No header")
    assert "the header is missing" in refused(folder)
    assert hub.stored == {}


def test_a_short_break_of_the_connection_is_mended(
    hub: FakeHub, folder: Path, no_waiting: None
) -> None:
    hub.cuts = 2
    send(folder)
    assert set(hub.repositories[NAME].files) == set(uploaded_files(folder))


def test_a_broken_upload_changes_nothing_and_goes_on_next_time(
    hub: FakeHub, folder: Path, no_waiting: None
) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    hub.refusals[digest] = (HTTPStatus.BAD_GATEWAY, "")
    assert "502 (Bad Gateway)" in refused(folder)
    assert hub.repositories[NAME].files == {} and len(hub.stored) == 2
    hub.refusals.clear()
    hub.requests.clear()
    send(folder)
    assert [r for r in hub.requests if r.startswith("PUT")] == [f"PUT /lfs/{digest}"]
    assert set(hub.repositories[NAME].files) == set(uploaded_files(folder))


def test_a_connection_that_stays_broken_is_said(
    hub: FakeHub, folder: Path, no_waiting: None
) -> None:
    hub.cuts = 1_000
    message = refused(folder)
    assert "the connection broke" in message and "not sent twice" in message
    assert hub.repositories[NAME].files == {}


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client waits up to half a minute between attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_an_interruption_ends_an_upload_at_once(hub: FakeHub, folder: Path) -> None:
    hub.stalls = True
    code = (
        "import sys; from pathlib import Path; from convert.publishing.upload import upload;"
        "from mlx_qwenvl.command import run;"
        f"body = lambda: upload(Path({str(folder)!r}), {NAME!r}, private=False, progress=False);"
        "sys.exit(run(body, 'upload'))"
    )
    environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    with start("-c", code, env=environment) as process:
        try:
            assert hub.stalled.wait(PATIENCE / 2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE / 2)
        finally:
            process.kill()
    assert (process.returncode, err.decode()) == (130, "upload: interrupted\n")
    assert hub.repositories[NAME].files == {}


@pytest.mark.parametrize(
    "missing",
    [
        "config.json",
        "model-00002-of-00002.safetensors",
        "variants/8bit/model-00001-of-00001.safetensors",
    ],
)
def test_half_a_folder_is_not_sent(hub: FakeHub, folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {Path(missing).name}"):
        send(folder)
    assert hub.requests == []


def test_a_file_is_no_folder(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        send(folder / "config.json")


# --- The card -----------------------------------------------------------------------------------


def test_the_card_header_is_what_the_hub_reads() -> None:
    data = ModelCard(model_card(facts())).data.to_dict()
    assert data == {
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        "license": "apache-2.0",
        "base_model": "Qwen/Qwen2-VL-2B-Instruct",
        "base_model_relation": "quantized",
        "tags": ["mlx", "qwen2_vl"],
    }


def test_the_card_states_recipe_source_and_sums() -> None:
    card = model_card(facts())
    assert f"revision `{'0' * 40}`" in card
    assert "[Qwen/Qwen2-VL-2B-Instruct](https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct)" in card
    assert "the vision tower has 16 bits" in card
    assert f"{'b' * 64}  config.json\n{'a' * 64}  model.safetensors" in card


def test_the_card_states_the_loss_where_it_was_measured() -> None:
    card = model_card(facts(variants=(FOUR, EIGHT), measured_on="48 built-in picture prompts"))
    assert "| `4bit` (default) | `4bit` | 1.25 GB | 4.62 | 0.0213 | 97.1% |" in card
    assert "| `8bit` | `8bit` | 2.20 MB | 8.50 | not measured | not measured |" in card
    assert "against the source on 48 built-in picture prompts." in card
    assert "--variant 8bit" in card and "--variant 4bit" not in card


def test_the_card_claims_no_loss_that_was_not_measured() -> None:
    card = model_card(facts(variants=(EIGHT,), default="8bit"))
    assert "was not measured" in card and "KL" not in card
    assert "| `8bit` | `8bit` | 2.20 MB | 8.50 |" in card


def test_the_card_of_a_learned_quantization_names_what_it_saw() -> None:
    assert "learned on the builtin set" in model_card(facts(calibrated="the builtin set"))
    assert "rounded to nearest" in model_card(facts())


def test_the_card_of_a_full_precision_copy_says_so() -> None:
    card = model_card(facts(variants=(VariantFacts("none", "none", 4_400_000_000, 16.0),)))
    assert "Nothing is quantized." in card
    assert "base_model_relation" not in ModelCard(card).data.to_dict()


def test_the_card_tells_no_path_of_this_machine(tmp_path: Path) -> None:
    source = tmp_path / "jane" / "my|model"
    source.mkdir(parents=True)
    for given in (source, tmp_path / "jane" / "gone"):
        card = model_card(facts(source=str(given), revision=None))
        assert "jane" not in card and str(tmp_path) not in card
        assert "base_model" not in ModelCard(card).data.to_dict()


def test_a_folder_goes_before_a_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in ModelCard(model_card(facts())).data.to_dict()


@pytest.mark.parametrize("licence", ["no", "other: x", 'a"b', "apache-2.0"])
def test_a_licence_is_copied_as_text(licence: str) -> None:
    assert ModelCard(model_card(facts(licence=licence))).data.license == licence


def test_a_cached_folder_knows_its_repository_and_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--Qwen--Qwen2-VL-2B-Instruct" / "snapshots" / commit
    folder.mkdir(parents=True)
    assert source_revision(folder) == commit
    assert source_repository(folder) == "Qwen/Qwen2-VL-2B-Instruct"
    card = model_card(facts(source=str(folder)))
    assert ModelCard(card).data.base_model == "Qwen/Qwen2-VL-2B-Instruct"


@pytest.mark.parametrize("place", ["model", "snapshots/main", f"elsewhere/{'0' * 40}"])
def test_another_folder_knows_none(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert source_revision(tmp_path / place) is None
    assert source_repository(tmp_path / place) is None


# --- The command line ---------------------------------------------------------------------------


def test_the_card_tells_what_the_folder_is_and_what_was_measured(
    hub: FakeHub, tmp_path: Path, tiny_folder: Path
) -> None:
    output = tmp_path / "written"
    convert(tiny_folder, output, Wishes(recipes=("4bit", "8bit"), vision_bits=8), name="me/tiny")
    unmeasured = model_card(card_facts(output, NAME))
    assert "| `4bit` (default) |" in unmeasured and "was not measured" in unmeasured
    assert "tower has 8bit (groups of 64)" in unmeasured
    sums = json.loads((output / "model.safetensors.index.json").read_text())["metadata"]["sha256"]
    assert all(f"{digest}  {name}" in unmeasured for name, digest in sums.items())
    quality = {"mean_kl": 0.125, "top1": 0.875}
    report = {
        "variants": [{"name": name, "quality": quality} for name in ("4bit", "8bit")],
        "measurement": {"positions": 300, "prompts": 32},
    }
    (output / "report.json").write_text(json.dumps(report))
    assert main(["--model", str(output), "--upload", NAME]) == 0
    card = hub.repositories[NAME].files["README.md"].decode()
    assert "| 0.1250 | 87.5% |" in card
    assert "300 answer tokens to 32 built-in pictures" in card
    assert "report.json" in hub.repositories[NAME].files


def test_converting_and_uploading_is_one_command(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "written"
    arguments = ["--model", "demo", "--output", str(output), "--quantize", "4bit"]
    assert main([*arguments, "--upload", NAME, "--private"]) == 0
    assert hub.repositories[NAME].is_private
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"it is at {hub.address}/{NAME}" in captured.err


def test_a_failed_upload_leaves_the_folder_and_says_how_to_send_it(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusals["/api/repos/create"] = (HTTPStatus.FORBIDDEN, "no")
    output = tmp_path / "written"
    arguments = ["--model", "demo", "--output", str(output), "--quantize", "4bit"]
    assert main([*arguments, "--upload", NAME]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the folder is ready, and --model {output} --upload {NAME} sends it" in error
    hub.refusals.clear()
    assert main(["--model", str(output), "--upload", NAME]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upload", NAME, "--single-file", "--output", "x"], "does not go with --single-file"),
        (["--private", "--output", "x"], "--private goes with --upload"),
        ([], "--output is missing"),
        (["--upload", NAME, "--quantize", "4bit"], "--quantize changes the model"),
        (["--upload", NAME, "--report"], "--report changes the model"),
    ],
)
def test_options_that_make_no_upload_are_refused(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--model", "demo", *options]) == 2
    assert message in capsys.readouterr().err
    assert hub.requests == []


def test_a_missing_token_is_told_before_anything_is_converted(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert main(["--model", "demo", "--output", str(tmp_path / "o"), "--upload", NAME]) == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_folder_of_another_converter_is_not_uploaded(
    hub: FakeHub, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_folder), "--upload", NAME]) == 1
    assert "was not written by this converter" in capsys.readouterr().err
    assert not (tiny_folder / "README.md").exists()
