"""What the operator chose when the server was started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Bounds and permissions of one server; no request can change them.

    Attributes:
        host: Address that is listened on.
        port: Port that is listened on.
        api_keys: Keys of which a request has to bring one; none means that no key is asked for.
        allowed_hosts: Names beside the loopback's under which the server may be called.
        allowed_origins: Origins of web pages beside the desktop apps' that may call it.
        image_root: Folder whose pictures a request may name by path; None for none.
        remote_images: Whether pictures may be named by public http(s) URLs.
        strict_model: Whether an unknown model name is a 404 instead of an alias.
        max_body_bytes: Of a request's body.
        max_messages: Of one conversation.
        max_images: Of one request.
        max_image_bytes: Of one encoded picture.
        max_image_pixels: Of one decoded picture.
        max_total_bytes: Of all encoded pictures of one request.
        max_total_pixels: Of all decoded pictures of one request.
        max_videos: Of one request.
        max_video_bytes: Of one encoded video.
        max_video_seconds: Of one video.
        max_video_frames: That one video has.
        max_sampled_frames: That a request may have taken of one video.
        max_video_pixels: Of one frame of a video, as stored.
        video_work_s: For reading and decoding one video, in seconds.
        fetch_timeout_s: In which all URLs of one request have to be fetched, in seconds.
        max_schema_bytes: Of a schema, a grammar or all tools together.
        max_concurrency: Answers that are computed side by side.
        max_queue: Requests that may wait for their turn.
        max_tokens: Most tokens of an answer, also where a request asks for more; None for the
            model's context.
        kv_bits: How keys and values are kept; None for the activations' dtype.
        max_connections: That are open at a time; one more is answered 503.
        head_timeout_s: In which a request's head has to come, in seconds.
        body_timeout_s: In which a request's body has to come, in seconds.
        write_timeout_s: In which a listener has to take a piece of a stream, in seconds.
        keepalive_s: Between signs of life while nothing else is sent, in seconds.
        drain_s: In which running answers may finish once the server is asked to end, in seconds.
        idle_unload_s: Without a request after which the model is let go; None for never.
        hang_s: That one step of the engine may take before it is given up, in seconds.
        on_crash: Whether a dead engine is started anew or ends the process.
        log_requests: Whether the log has a line for each request: method, path, status and time.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: frozenset[str] = field(default=frozenset(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    image_root: Path | None = None
    remote_images: bool = True
    strict_model: bool = False
    max_body_bytes: int = 64 * 2**20  # bytes
    max_messages: int = 2048
    max_images: int = 32
    max_image_bytes: int = 32 * 2**20  # bytes
    max_image_pixels: int = 50_000_000  # pixels
    max_total_bytes: int = 128 * 2**20  # bytes
    max_total_pixels: int = 200_000_000  # pixels
    max_videos: int = 4
    max_video_bytes: int = 128 * 2**20  # bytes
    max_video_seconds: int = 3600
    max_video_frames: int = 250_000
    max_sampled_frames: int = 768
    max_video_pixels: int = 4096 * 2304  # pixels
    video_work_s: float = 60.0
    fetch_timeout_s: float = 30.0
    max_schema_bytes: int = 256 * 2**10  # bytes
    max_concurrency: int = 8
    max_queue: int = 64
    max_tokens: int | None = None
    kv_bits: int | None = None
    max_connections: int = 128
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keepalive_s: float = 10.0
    drain_s: float = 30.0
    idle_unload_s: float | None = None
    hang_s: float = 600.0
    on_crash: Literal["restart", "exit"] = "restart"
    log_requests: bool = False
