"""`mlx-qwenvl doctor`: it tells what is so, lives through what is broken, and gives nobody away."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl import QwenVL, QwenVLError, load
from mlx_qwenvl.benching.machine import this_machine
from mlx_qwenvl.benching.table import describe
from mlx_qwenvl.command import EXIT_ERROR, EXIT_OK
from mlx_qwenvl.doctor import main
from mlx_qwenvl.doctoring import (
    chosen,
    exam,
    examine,
    hardware,
    places,
    selftest,
    software,
    variables,
)
from mlx_qwenvl.doctoring.ask_mlx import look_here
from mlx_qwenvl.doctoring.finding import Finding, look
from mlx_qwenvl.doctoring.isolate import Heard, hear
from mlx_qwenvl.doctoring.probe import Probe
from mlx_qwenvl.doctoring.telling import private, to_end
from mlx_qwenvl.engine.disk_tier import FOLDER
from mlx_qwenvl.inputs.pyav import EXPECTED, INSTALL
from mlx_qwenvl.weights.choice import choose_model, settings_file
from tests.command_lines import ROOT, SHAPES, run

DOCTOR = ("-m", "mlx_qwenvl.doctor")

# Every process of Python that finds it tells when it asks for an address or connects.
TELLTALE = """
import os, socket
def told(*_, **__):
    open(os.environ["TELLTALE"], "a").write("asked\\n")
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = told
"""


@pytest.fixture(scope="module")
def here() -> Probe:
    return look_here()


@pytest.fixture
def doctor(
    here: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], tuple[int, dict[str, Finding]]]:
    """Exit code and findings of the command line, without the processes that it starts."""
    monkeypatch.setattr(examine, "probe", lambda: here)
    monkeypatch.setattr(selftest, "findings", lambda: [])

    def ask() -> tuple[int, dict[str, Finding]]:
        code = main(["--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["healthy"] == (code == EXIT_OK)
        findings = [Finding(**one) for section in told["sections"].values() for one in section]
        return code, {finding.name: finding for finding in findings}

    return ask


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    return finding


# --- The whole ----------------------------------------------------------------------------------


def test_a_healthy_machine_is_told_so_without_the_network_and_without_names(
    tmp_path: Path,
) -> None:
    home = tmp_path / "jane"
    telltale, log = tmp_path / "telltale", tmp_path / "asked"
    for folder in (home, telltale):
        folder.mkdir()
    (telltale / "sitecustomize.py").write_text(TELLTALE)
    env = {
        "PYTHONPATH": f"{telltale}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "error",
        "TELLTALE": str(log),
        "HOME": str(home),
        "LOGNAME": "jane",
        "XDG_CONFIG_HOME": "",
        "XDG_CACHE_HOME": "",
        "HF_HOME": str(home / "hub"),
        "MLX_QWENVL_MODEL": "people/not-downloaded",  # what would be tempting to look for
        "MLX_QWENVL_DISK_CACHE": str(home / "kept"),
    }
    ran = run(*DOCTOR, env=env)
    assert (ran.code, ran.err) == (EXIT_OK, "")
    assert not log.exists()
    assert "jane" not in ran.out and str(tmp_path) not in ran.out
    lines = ran.out.splitlines()
    assert lines[0] == "```text" and lines[-1] == "```" and ran.out.count("```") == 2
    for heading in ("Machine", "Memory", "Software", "Model", "Disk", "Environment", "Self-test"):
        assert heading in lines
    assert '"The circle is red.", "The circle is blue."' in ran.out
    assert "~/hub/hub, nothing there yet" in ran.out
    assert "! folder: mlx-qwenvl use people/not-downloaded downloads it" in lines
    assert lines[-2].startswith("nothing is broken")


def test_the_telltale_tells(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELLTALE)
    env = {"PYTHONPATH": str(tmp_path), "TELLTALE": str(tmp_path / "asked")}
    run("-c", "import urllib.request; urllib.request.urlopen('http://example.org')", env=env)
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("core", "told"),
    [
        ("raise ImportError('libmlx.so: cannot open shared object file')", "libmlx.so: cannot"),
        ("import os; os.abort()", "SIGABRT"),
    ],
    ids=["part missing", "crash"],
)
def test_where_mlx_is_broken_all_else_is_told(tmp_path: Path, core: str, told: str) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(core)
    ran = run(*DOCTOR, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert (ran.code, ran.err) == (EXIT_ERROR, "")
    assert re.search(rf"^x MLX +cannot be used: {told}", ran.out, re.M)
    assert re.search(r"^x MLX: install it anew: pip install .*mlx", ran.out, re.M)
    assert "\nDisk\n" in ran.out and "Self-test" not in ran.out
    assert ran.out.endswith("\n1 broken\n```\n") or "\n1 broken; " in ran.out


def copy_of_the_program(folder: Path, *without: str) -> None:
    ignored = shutil.ignore_patterns("__pycache__", *without)
    shutil.copytree(ROOT / "mlx_qwenvl", folder / "mlx_qwenvl", ignore=ignored)


def test_without_any_package_the_doctor_still_speaks(tmp_path: Path) -> None:
    """As where an installation was broken off: -S hides what is installed from this process.

    The program is copied, since beside its source lies what an editable installation noted.
    """
    copy_of_the_program(tmp_path)
    ran = run("-S", *DOCTOR, "--json", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (ran.code, ran.err) == (EXIT_ERROR, "")
    told = json.loads(ran.out)
    values = {one["name"]: one["value"] for part in told["sections"].values() for one in part}
    assert values["built on"] == "cannot be told: No module named 'packaging'"
    assert values["mlx-qwenvl"].endswith(", not installed")


def test_missing_weights_of_the_demo_are_a_finding(tmp_path: Path) -> None:
    copy_of_the_program(tmp_path, "model.safetensors")
    ran = run(*DOCTOR, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (ran.code, ran.err) == (EXIT_ERROR, "")
    assert re.search(r"^x loads +not: .*demo holds no weights", ran.out, re.M)
    assert re.search(r"^x folder +cannot be told: .*demo holds no weights", ran.out, re.M)


def test_json_and_text_hold_the_same(
    doctor: Callable[[], tuple[int, dict[str, Finding]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = doctor()
    assert main([]) == code
    printed = capsys.readouterr().out
    for finding in found.values():
        if finding.name not in ("available", "disk", "MLX may hold"):  # which change meanwhile
            assert f"{finding.name:<16}{finding.value}" in printed


# --- What is broken -----------------------------------------------------------------------------


def test_damaged_settings_are_one_broken_line(
    doctor: Callable[[], tuple[int, dict[str, Finding]]],
) -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text("{")
    code, found = doctor()
    assert code == EXIT_ERROR
    assert found["chosen"].state == "broken" and "mlx-qwenvl use" in found["chosen"].value
    assert found["built on"].state == "fine"


def test_a_chosen_folder_that_is_gone_is_a_finding(
    doctor: Callable[[], tuple[int, dict[str, Finding]]], tmp_path: Path
) -> None:
    choose_model(str(tmp_path / "gone"))
    code, found = doctor()
    assert code == EXIT_ERROR
    assert found["folder"].state == "broken" and "no model" in found["folder"].value


def test_a_model_that_does_not_fit_is_told_before_it_is_loaded(
    here: Probe, tiny_folder: Path
) -> None:
    choose_model(str(tiny_folder))
    folder, needs = chosen.state(replace(here, limit=1000))
    assert folder.state == "fine"
    assert needs.state == "note" and "docs/models.md" in needs.advice
    assert (ROOT / "docs" / "models.md").exists()
    assert [finding.state for finding in chosen.state(here)] == ["fine", "fine"]


def test_a_file_in_place_of_the_hubs_cache_is_a_finding(
    doctor: Callable[[], tuple[int, dict[str, Finding]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "hub").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, found = doctor()
    assert code == EXIT_ERROR and found["Hub's cache"].state == "broken"


def test_sizes_of_caches_are_those_of_their_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_QWENVL_DISK_CACHE", str(tmp_path))
    load("demo", disk_cache=True).generate("Describe it.", images=[SHAPES], max_tokens=2)
    files = list((tmp_path / FOLDER).glob("*.safetensors"))
    found = only(places.disk_cache())
    assert files and found.data == sum(file.stat().st_size for file in files)
    assert found.value.startswith("on; ") and f"{len(files)} files" in found.value


def test_a_link_in_place_of_the_disk_cache_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_QWENVL_DISK_CACHE", str(tmp_path))
    (tmp_path / FOLDER).symlink_to(tmp_path)
    assert only(places.disk_cache()).state == "broken"


def test_settings_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    assert only(places.settings()).state == "fine"
    settings_file().parents[2].joinpath("config").write_text("")
    assert only(places.settings()).state == "note"


def test_little_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(places.room()).data > 0
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    found = only(places.room())
    assert found.state == "note" and "HF_HOME" in found.advice


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("MLX_QWENVL_KERNELS", "'off'", "fine"),
        ("MLX_QWENVL_KERNEL", "set, but nobody reads it", "note"),
        ("MLX_QWENVL_API_KEY", "set", "fine"),
    ],
)
def test_variables_are_told_but_no_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, state: str
) -> None:
    monkeypatch.setenv(name, "off")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = {finding.name: finding for finding in variables.findings()}
    assert (found[name].value, found[name].state) == (value, state)
    assert "HF_TOKEN" in found["others"].value and "hf_secret" not in str(found)


def test_every_variable_that_the_code_reads_is_known() -> None:
    read: set[str] = set()
    for folder in ("mlx_qwenvl", "server", "convert"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read |= set(re.findall(rf"\A{variables.PREFIX}[A-Z_]+\Z", node.value))
    assert read - {variables.PREFIX} == set(variables.KNOWN)


def test_what_fails_while_it_is_looked_at_is_one_finding() -> None:
    def fail() -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/some/where")

    found = only(look("cache", fail))
    assert found == Finding(
        "cache", "cannot be told: Permission denied: /some/where", state="broken"
    )


# --- Software -----------------------------------------------------------------------------------


def test_what_is_installed_is_what_the_metadata_says() -> None:
    found = only(software.dependencies())
    for name, version in found.data.items():
        assert metadata.version(name) == version
    assert {"mlx", "numpy", "huggingface-hub"} <= set(found.data)


@pytest.mark.parametrize(
    ("version", "value"), [(None, "is missing"), ("0.9", "0.9, needed is >=1.26")]
)
def test_a_dependency_that_is_missing_or_old_is_broken(
    monkeypatch: pytest.MonkeyPatch, version: str | None, value: str
) -> None:
    real = software._version
    monkeypatch.setattr(
        software, "_version", lambda needed: version if needed.name == "numpy" else real(needed)
    )
    found = {finding.name: finding for finding in software.dependencies()}
    assert (found["numpy"].value, found["numpy"].state) == (value, "broken")
    assert found["numpy"].advice == "pip install 'numpy>=1.26'"
    assert "numpy" not in found["built on"].data


def test_an_extra_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.name: one.data for one in software.extras()}["extra server"] is True
    monkeypatch.setattr(software, "_version", lambda _needed: None)
    found = {finding.name: finding for finding in software.extras()}
    assert set(found) == {f"extra {name}" for name in ("heic", "notebook", "plot", "server")}
    assert found["extra heic"].value == "not installed; pip install 'mlx-qwenvl[heic]'"
    assert {finding.state for finding in found.values()} == {"fine"}


def test_pyav_is_told_with_the_version_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    (needed,) = software.requirements("video")
    assert str(needed.specifier) == f">={EXPECTED}"
    value = f"{av.__version__}, for videos; expected is {EXPECTED} or later"
    assert only(software.videos()) == Finding("PyAV", value, data=True)
    monkeypatch.setattr(av, "__version__", "16.0.1")
    old = only(software.videos())
    assert (old.value, old.state) == (f"16.0.1; expected is {EXPECTED} or later", "note")
    assert INSTALL in old.advice and old.data is False
    monkeypatch.setitem(sys.modules, "av", None)
    missing = only(software.videos())
    assert missing.value == f"not installed; {INSTALL} brings it, {EXPECTED} or later"
    assert missing.state == "fine"  # pictures need none


def test_a_pyav_that_cannot_be_loaded_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.61: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av", raising=False)
    found = only(software.videos())
    assert found.value.startswith("cannot be loaded; expected is") and found.state == "note"
    assert "(libavcodec.so.61: no such file)" in found.advice


def test_the_pythons_that_are_tested_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    oldest, newest = (software._dotted(version) for version in (software.OLDEST, software.NEWEST))
    assert f"Python {oldest} to {newest}" in readme
    assert f"macOS {hardware.LEAST_MACOS} or later" in readme


@pytest.mark.parametrize(
    ("version", "state"), [((3, 9), "broken"), ((3, 11), "fine"), ((3, 15), "note")]
)
def test_other_pythons_are_told(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], state: str
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert only(software.python()).state == state


# --- Hardware -----------------------------------------------------------------------------------


def test_the_machine_is_told_as_bench_tells_it(here: Probe) -> None:
    assert here.machine == describe(this_machine(here.memory))
    assert Probe(**json.loads(json.dumps(asdict(here)))) == here


def test_limits_that_make_no_sense_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", "much")
    monkeypatch.setenv("MLX_QWENVL_KERNELS", "perhaps")
    found = look_here()
    assert found.limit is None and "'much'" in str(found.limit_fault)
    states = {one.name: one.state for one in hardware.memory(found)}
    assert states["MLX may hold"] == "broken"
    if mx.default_device() == mx.cpu:
        states = {one.name: one.state for one in hardware.device(found, None)}
        assert states["fused steps"] == "broken"


def test_no_limit_is_worth_a_note(here: Probe) -> None:
    found = {one.name: one for one in hardware.memory(replace(here, limit=None))}
    assert found["MLX may hold"].state == "note"


@pytest.mark.parametrize(
    ("loaded", "switch", "state"),
    [(True, "on", "fine"), (False, "off", "note"), (False, "", "note")],
)
def test_openblas_that_is_missing_is_worth_a_note(
    monkeypatch: pytest.MonkeyPatch, loaded: bool, switch: str, state: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("mlx_qwenvl.blas.LOADED", loaded)
    monkeypatch.setenv("MLX_QWENVL_OPENBLAS", switch)
    assert only(hardware.openblas()).state == state


@pytest.mark.parametrize(
    ("version", "processor", "state"),
    [("26.1", "arm64", "fine"), ("13.6", "arm64", "broken"), ("15.2", "x86_64", "broken")],
)
def test_macs_that_mlx_does_not_run_on_are_broken(
    monkeypatch: pytest.MonkeyPatch, version: str, processor: str, state: str
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), processor))
    assert only(hardware.system()).state == state


# As macOS prints it; no Mac was asked.
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               26390.
Pages active:                            391239.
Pages inactive:                          388043.
Pages speculative:                         1859.
Pages throttled:                              0.
"""


@pytest.mark.parametrize(
    ("limit", "gib", "value"),
    [
        ("57344\n", 64, "60.13 GB"),
        (
            "0\n",
            64,
            "the system's own choice; `sudo sysctl iogpu.wired_limit_mb=57344` would make it "
            "more until the next start",
        ),
        ("0\n", 16, "the system's own choice"),  # of which nothing can be spared
    ],
)
def test_a_mac_tells_its_wired_limit_and_what_is_free(
    monkeypatch: pytest.MonkeyPatch, here: Probe, limit: str, gib: int, value: str
) -> None:
    answers = {"sysctl": limit, "vm_stat": VM_STAT}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_ask", lambda command, *_: answers[command])
    mac = replace(
        here, device="gpu", memory=gib * 2**30, available=None, recommended=48 * 2**30, limit=1
    )
    found = {one.name: one for one in hardware.memory(mac)}
    assert found["wired limit"].value == value
    assert found["available"].data == (26390 + 388043 + 1859) * 16384
    assert found["working set"].value.startswith("51.54 GB")


def test_a_mac_without_those_tools_tells_the_rest(
    monkeypatch: pytest.MonkeyPatch, here: Probe
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_ask", lambda *_: None)
    names = [one.name for one in hardware.memory(replace(here, available=None))]
    assert "available" not in names and "wired limit" not in names and "in all" in names


# --- The self-test ------------------------------------------------------------------------------


def test_the_picture_is_what_decides() -> None:
    assert exam.is_right({"red": "The circle is red.", "blue": "Blue."})
    assert not exam.is_right({"red": "The circle is red.", "blue": "The circle is red."})
    assert not exam.is_right({"red": "It is red or blue.", "blue": "It is red or blue."})


def test_products_of_mlx_are_those_of_numpy() -> None:
    assert exam.worst_product() < (1e-5 if mx.default_device() == mx.cpu else 5e-3)


def test_a_wrong_product_is_far_beyond_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **k: real(*a, **k) * 1.02)
    assert exam.worst_product() > 2 * exam.PRODUCT_TOLERANCE


def test_half_precision_is_allowed_and_a_damaged_layer_is_not(demo: QwenVL) -> None:
    exact = exam.logits(demo)
    halved = exam.apart(exam.logits(load("demo", dtype="bfloat16")), exact)
    assert 0 < halved < exam.LOGIT_TOLERANCE
    damaged = load("demo", dtype="float32")
    layer = damaged.model.model.layers[0].input_layernorm
    layer.weight = layer.weight * 0.5
    assert exam.apart(exam.logits(damaged), exact) > exam.LOGIT_TOLERANCE


SOUND = (
    {"stage": "loads", "seconds": 0.1},
    {
        "stage": "sees",
        "seconds": 0.2,
        "question": exam.QUESTION,
        "answers": {"red": "Red.", "blue": "Blue."},
        "right": True,
    },
    {"stage": "products", "seconds": 0.1, "worst": 1e-6, "tolerance": 5e-3},
)


@pytest.mark.parametrize(
    ("heard", "name", "told"),
    [
        (Heard((), "no weights (exit code 1)"), "loads", "no weights"),
        (Heard(SOUND[:1], "SIGABRT"), "self-test", "'loads': SIGABRT"),
        (Heard((SOUND[0], SOUND[1] | {"right": False}), None), "sees", "wrongly"),
        (Heard((SOUND[2] | {"worst": 0.1},), None), "products", "off by 1e-01"),
        (Heard((SOUND[2] | {"worst": None},), None), "products", "not finite"),
    ],
)
def test_a_self_test_that_fails_is_broken(heard: Heard, name: str, told: str) -> None:
    broken = [one for one in selftest.told(heard) if one.state == "broken"]
    assert [one.name for one in broken] == [name]
    assert told in broken[0].value and broken[0].advice


def test_a_self_test_that_passes_is_fine() -> None:
    assert [one.state for one in selftest.told(Heard(SOUND, None))] == ["fine"] * 3


def test_a_process_that_hangs_is_ended_and_what_it_said_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nprint('a library says hello\\n{\"stage\": 1}', flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    heard = hear("slow", 1.5)
    assert heard.told == ({"stage": 1},)
    assert heard.fault is not None and "not done after" in heard.fault


def test_ctrl_c_ends_the_doctor_in_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, *DOCTOR],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "mlx-qwenvl doctor: interrupted\n"


# --- What is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/jane", "~"),
        ("/home/jane/a, /home/jane/b", "~/a, ~/b"),
        ("/home/janet/a", "/home/janet/a"),
        ("/Volumes/jane/models", "/Volumes/USER/models"),
        ("jane-austen/model", "jane-austen/model"),
    ],
)
def test_home_folders_and_users_are_not_told(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("LOGNAME", "jane")
    assert private(text) == told


def test_a_home_behind_a_link_is_not_told_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert private(f"{real}/x and {tmp_path}/link/y") == "~/x and ~/y"


def test_the_verdict_counts(here: Probe) -> None:
    findings = [Finding("a", ""), Finding("b", "", "note", "do b"), Finding("c", "", "broken")]
    assert list(to_end(findings)) == ["! b: do b", "1 broken; 1 could be better"]
    assert list(to_end(findings[:1])) == ["nothing is broken"]


def test_a_probe_that_fails_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_qwenvl.doctoring import probe

    monkeypatch.setattr(probe, "hear", lambda *_: Heard((), "no MLX"))
    with pytest.raises(QwenVLError, match="no MLX"):
        probe.probe()
