"""Videos in requests: parts, fields, counts, and what the operator allows."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.errors import MediaError, PromptError
from mlx_qwenvl.inputs.frames import VideoWishes
from mlx_qwenvl.inputs.messages import Message, parse_messages
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.video_part import VideoPart
from server.engine import Engine
from server.media import MediaPolicy
from server.settings import Settings
from tests.server.conftest import connected_to, data_url

pytest.importorskip("av", reason="PyAV decodes videos; it comes with the extra 'video'")

from tests.films import film

CHAT = "/v1/chat/completions"
CLIP = film(30, size=(112, 84))
URL = "data:video/mp4;base64," + base64.b64encode(CLIP).decode()
SMALL = 56 * 56


def asked(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What happens?"}]
    message = {"role": "user", "content": content}
    return {"messages": [message], "max_tokens": 4, "temperature": 0, "min_pixels": SMALL} | fields


def video(url: Any = URL, **fields: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}} | fields


def details(client: TestClient, body: dict[str, Any]) -> dict[str, int]:
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    counted: dict[str, int] = reply.json()["usage"]["prompt_tokens_details"]
    return counted


def test_a_video_is_answered_as_in_python(client: TestClient, served: QwenVL) -> None:
    reply = client.post(CHAT, json=asked(video())).json()
    prompt = served.prompt(parse_messages(asked(video())["messages"]), Options(min_pixels=SMALL))
    assert reply["usage"]["prompt_tokens"] == prompt.token_ids.size
    assert reply["usage"]["prompt_tokens_details"]["video_tokens"] == prompt.video_tokens == 36


@pytest.mark.parametrize(
    "part",
    [
        video(),
        {"type": "video_url", "video_url": URL},
        {"type": "input_video", "video_url": URL},
        {"type": "video", "video": URL},
        {"type": "video", "video": [data_url()] * 6, "max_pixels": 112 * 84},
    ],
    ids=["OpenAI's manner", "bare", "input_video", "Qwen's manner", "frames"],
)
def test_every_form_of_a_part_is_taken(client: TestClient, part: dict[str, Any]) -> None:
    counted = details(client, asked(part))
    assert counted["video_tokens"] > 0
    assert counted["image_tokens"] == 0


def test_fields_say_how_a_video_is_sampled(client: TestClient) -> None:
    assert details(client, asked(video(), fps=4))["video_tokens"] == 6 * 12
    assert details(client, asked(video(), n_frames=2))["video_tokens"] == 12
    assert details(client, asked(video(fps=1, min_frames=2)))["video_tokens"] == 12
    assert details(client, asked(video(nframes=10), fps=4))["video_tokens"] == 5 * 12
    both = details(client, asked(video(), {"type": "image_url", "image_url": {"url": data_url()}}))
    assert both["video_tokens"] == 36 and both["image_tokens"] == 9


def test_tokens_of_a_video_are_counted_without_an_answer(client: TestClient) -> None:
    counted = client.post("/v1/tokenize", json=asked(video())).json()
    assert (counted["video_tokens"], counted["image_tokens"]) == (36, 0)
    metrics = client.get("/metrics").text
    assert "video_tokens_total" in metrics


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (asked(video("data:video/mp4;base64,AAAA")), "expected MP4"),
        (asked(video("#EXTM3U")), "names no video"),
        (asked(video("file:///etc/passwd")), "not opened here"),
        (asked(video("http://127.0.0.1/clip.mp4")), "not on the public internet"),
        (asked(video("concat:a.mp4|b.mp4")), "names no video"),
        (asked(video("rtsp://camera.example/1")), "rtsp: URLs are not opened"),
        (asked(video(data_url())), "is a PNG picture"),
        (asked(video(5)), "a video is named by a int, expected a string"),
        (asked(video(), fps=0), "fps"),
        (asked(video(), fps=1, n_frames=2), "give one of them"),
        (asked(video(fps=True)), "has fps True, expected a number above 0"),
        (asked(video(max_frames=10**6)), "1000000 frames of a video, at most 768 pass"),
        (asked(video(max_pixels=10**9)), "a video of 1000000000 pixels, at most"),
        (asked(*[video()] * 5), "5 videos came, at most 4 pass"),
        (asked({"type": "video", "video": ["a"] * 33}), "a video of 33 pictures came, 32 more"),
        (asked({"type": "video", "video": [5]}), "a frame is named by a int"),
        (asked({"type": "video", "video": []}), "has no frames"),
        (asked({"type": "video_url"}), "names no video"),
        (asked(video(), mm_processor_kwargs={"fps": 1}), "use min_pixels, max_pixels and fps"),
        (asked(video(), media_io_kwargs={"video": {}}), "use fps, n_frames and max_frames"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_videos_are_one_line(client: TestClient, body: dict[str, Any], says: str) -> None:
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 400, reply.text
    message = reply.json()["error"]["message"]
    assert says in message and "\n" not in message


def test_the_operators_bounds_hold_while_a_video_is_read(served: QwenVL) -> None:
    def refused(says: str, **bounds: Any) -> None:
        limits = MediaPolicy.of(Settings(**bounds)).limits()
        with pytest.raises(MediaError, match=says):
            opened(served.processor, limits)

    refused("has more than 100 bytes", max_video_bytes=100)
    refused("is longer than 1 s", max_video_seconds=1)
    refused("has more than 10 frames", max_video_frames=10)
    refused("too large; at most 100 pixels a frame", max_video_pixels=100)
    refused("takes longer than 1e-09 s", video_work_s=1e-9)
    refused("have more than 100 bytes together", max_total_bytes=100)


def opened(processor: Processor, limits: Any) -> None:
    processor.open_video(VideoPart(CLIP), VideoWishes(), 2048, limits=limits)


def test_a_video_by_path_needs_the_operators_folder(served: QwenVL, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    settings = Settings(image_root=tmp_path)
    with connected_to(Engine(lambda: served, settings, "tiny")) as client:
        assert details(client, asked(video("clip.mp4")))["video_tokens"] == 36
        reply = client.post(CHAT, json=asked(video("../other.mp4")))
        assert "is no file in the folder" in reply.json()["error"]["message"]


def test_no_videos_at_all_can_be_the_operators_choice() -> None:
    turns: list[Message] = parse_messages(asked(video())["messages"])
    with pytest.raises(PromptError, match="1 videos came, at most 0 pass"):
        MediaPolicy.of(Settings(max_videos=0)).admit(turns)


@pytest.mark.parametrize("kind", ["video_url", "input_video", "video"])
@pytest.mark.parametrize(("path", "field"), [("messages", "messages"), ("responses", "input")])
def test_forms_without_videos_name_the_one_that_has_them(
    client: TestClient, path: str, field: str, kind: str
) -> None:
    part = {"type": kind, "video_url": {"url": URL}}
    body = {field: [{"role": "user", "content": [part]}]}
    for where in (path, "messages/count_tokens" if path == "messages" else path):
        most = {"max_tokens": 4} if where == "messages" else {}
        reply = client.post(f"/v1/{where}", json=body | most)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == (
            f"{field}[0].content[0] has type {kind!r}, and {path.title()} has no form for videos; "
            "/v1/chat/completions takes them as video_url"
        )


def test_a_tool_that_returns_a_video_is_told_the_same(client: TestClient) -> None:
    part = {"type": "video_url", "video_url": {"url": URL}}
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [part]}
    turns = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    turns = [{"role": "user", "content": "Look."}, *turns]
    reply = client.post("/v1/messages", json={"messages": turns, "max_tokens": 4})
    assert reply.status_code == 400
    assert "/v1/chat/completions takes them" in reply.json()["error"]["message"]
