"""The pages of docs/: what they quote is said, what they compute is so, and the site is whole."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from benchmarks import which_fits
from mlx_qwenvl import errors
from mlx_qwenvl.doctoring.variables import KNOWN
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS
from mlx_qwenvl.weights.short_names import SHORT_NAMES
from tests.command_lines import PATIENCE, ROOT
from tests.family.checkpoints import checkpoint

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SOURCES = ("mlx_qwenvl", "server", "convert")
GAP = "\0"  # in the code's messages, where a value is put in

# --- Troubleshooting ----------------------------------------------------------------------------

TROUBLE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### `(.+)`\n\n((?:(?!^#).*\n?)+)", TROUBLE, re.M)
# Messages of others begin their entries so, or end with whose they are.
FOREIGN = ("pip's message", "Metal's message", "MLX's message", "The loader's message")
LONGEST = 400  # characters of a message; longer texts are docstrings and pages
# What a value is in these, where that tells the reader more than a gap.
VALUES = ("lacks", "has unknown")
# Not written where the error is raised.
PUT_TOGETHER = {
    "HEIC pictures need one more package: pip install 'mlx-qwenvl[heic]'",
    "videos need one more package: pip install 'mlx-qwenvl[video]'",
    "PyAV … can crash on a damaged video, … does not; …",
    "PyAV cannot be loaded (…); pip uninstall av, then …",
    "the server's TLS certificate is not trusted",
}
OURS = [(message, body) for message, body in ENTRIES if not body.startswith(FOREIGN)]


@cache
def _said() -> tuple[frozenset[str], dict[str, list[str]]]:
    """All texts in the code, and those of errors by their class; with a gap where a value goes."""
    texts: set[str] = set()
    errors: dict[str, list[str]] = {}
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Constant, ast.JoinedStr)):
                    text = _text(node)
                    if len(text) <= LONGEST:
                        texts.add(text)
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    function = node.exc.func
                    if isinstance(function, ast.Name) and node.exc.args:
                        errors.setdefault(function.id, []).append(_text(node.exc.args[0]))
    return frozenset(texts), errors


def messages() -> frozenset[str]:
    """Every text in the code."""
    return _said()[0]


def raised() -> dict[str, list[str]]:
    """Texts by the class of the error that is raised with them."""
    return _said()[1]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return GAP


def pattern(message: str) -> re.Pattern[str]:
    """What a heading matches: `…` stands for any text with a value in it."""
    for value in VALUES:
        if value in message:
            assert value in messages()
            message = message.replace(value, "…")
    pieces = [re.escape(piece) for piece in message.split("…")]
    return re.compile(".*".join(pieces), re.DOTALL)


@pytest.mark.parametrize("message", [message for message, _ in OURS])
def test_a_quoted_message_is_one_that_the_code_says(message: str) -> None:
    assert any(pattern(message).search(text) for text in messages())


@pytest.mark.parametrize(("message", "body"), OURS, ids=[message[:40] for message, _ in OURS])
def test_a_message_is_said_by_the_class_that_its_entry_names(message: str, body: str) -> None:
    named = re.match(r"`(\w+)`\. ", body)
    if named is None:
        assert body.startswith(("Status ", "The command"))
    elif message not in PUT_TOGETHER:
        assert any(pattern(message).fullmatch(text) for text in raised()[named[1]])


def test_all_errors_have_an_entry() -> None:
    named = set(re.findall(r"^`(\w+)`\. ", TROUBLE, re.M))
    assert named >= set(errors.__all__)


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not any(pattern("the model is too … for …").search(text) for text in messages())
    assert len(OURS) > 40 and len(ENTRIES) > len(OURS)


# --- Which model fits ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> list[which_fits.Model]:
    return list(which_fits.models())


def test_the_table_is_what_the_code_computes(
    models: list[which_fits.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(which_fits, "models", lambda: models)
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    assert which_fits.with_table(page, which_fits.table()) == page, (
        "python -m benchmarks.which_fits --write docs/models.md"
    )
    assert "computed, not measured" in page


def test_weights_are_those_of_the_published_models(models: list[which_fits.Model]) -> None:
    """Parameters as others state them, at two bytes each where nothing is quantized."""
    for model in models:
        stated = checkpoint(*which_fits.CHECKPOINTS[model.name][:2])["parameters"]
        assert model.description.parameters == stated
        if model.recipe == "none":
            assert model.weights == pytest.approx(2 * stated, rel=0.005)


def test_a_pixel_more_than_the_largest_picture_does_not_fit(
    models: list[which_fits.Model],
) -> None:
    for model in models:
        for gib in which_fits.MACS:
            limit = which_fits.working_set(gib)
            most = model.largest(limit)
            if most == 0:
                assert model.needed(DEFAULT_MAX_PIXELS)[1] > limit
            else:
                assert model.needed(most)[1] <= limit
            if model.cell(limit) not in ("no", "all"):
                assert model.needed(most + model.token_pixels)[1] > limit


def test_what_is_recommended_fits(models: list[which_fits.Model]) -> None:
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"\*\*([\w.-]+)\*\* in (\d) bits \| (\d+) GB.*`mlx-qwenvl use (\S+)`", page)
    assert len(rows) == 13
    for label, bits, gib, name in rows:
        (model,) = [m for m in models if (m.label, m.recipe) == (label, f"{bits}bit")]
        assert model.largest(which_fits.working_set(int(gib))) > DEFAULT_MAX_PIXELS
        assert SHORT_NAMES[name].endswith(f"{label}-Instruct-{bits}bit")


# --- The pages ----------------------------------------------------------------------------------


def test_the_command_line_page_names_every_variable() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(MLX_QWENVL_\w+)`", page, re.M)) == set(KNOWN)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]*)\)", text):
        place, _, anchor = target.partition("#")
        file = ((DOCS / page).parent / place).resolve() if place else DOCS / page
        assert file.is_relative_to(ROOT) and file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {_slug(heading) for heading in headings}, target


def _slug(heading: str) -> str:
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def test_every_page_is_in_the_site() -> None:
    listed = set(_pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed == set(PAGES)


def _pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for inner in nav.values():
            yield from _pages_of(inner)
    elif isinstance(nav, list):
        for inner in nav:
            yield from _pages_of(inner)


# --- The site -----------------------------------------------------------------------------------


class Loads(HTMLParser):
    """What a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.found.append(str(given["src"]))
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(str(given.get("href")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; the extra docs brings it")
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for address in loads.found:
            assert not re.match(r"(?:https?:)?//", address), (page, address)
        assert "mermaid" not in page.read_text(encoding="utf-8")  # which would come from a CDN
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:", style.read_text(encoding="utf-8"))


def test_links_out_of_the_pages_are_names_in_the_site(site: Path) -> None:
    """What they lead to is in a checkout and not in the site."""
    leaving = [page for page in PAGES if "/" not in page and "](../" in (DOCS / page).read_text()]
    assert leaving
    for page in leaving:
        text = (site / page.removesuffix(".md") / "index.html").read_text(encoding="utf-8")
        for target in re.findall(r"\]\(\.\./([^)#]*)", (DOCS / page).read_text()):
            assert f"<code>{target}</code>" in text


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("api", ["load", "QwenVL", "Chat"]),
        (
            "api/answers",
            ["Reply", "Chunk", "Usage", "Timings", "Speculation", "TokenLogprob", "Box"],
        ),
        ("api/options", ["Options", "Sampling", "Grammar"]),
        ("api/errors", list(errors.__all__)),
    ],
)
def test_the_reference_has_what_is_public(site: Path, page: str, told: list[str]) -> None:
    text = (site / page / "index.html").read_text(encoding="utf-8")
    for name in told:
        assert re.search(rf'id="mlx_qwenvl\.(?:\w+\.)*{name}"', text), name


def test_the_reference_covers_the_package(site: Path) -> None:
    import mlx_qwenvl

    texts = [page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html")]
    for name in set(mlx_qwenvl.__all__) - {"__version__"}:
        pattern = rf'id="mlx_qwenvl\.(?:\w+\.)*{name}"'
        assert any(re.search(pattern, text) for text in texts), name
