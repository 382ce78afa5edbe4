"""What happens in numbers, for Prometheus. Labels come from fixed sets, whatever is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_qwenvl.engine.reply import Chunk

if TYPE_CHECKING:
    from .engine import Engine

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH")
STATES = ("loading", "ready", "unloaded", "draining", "dead")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        engine: What is looked at when somebody asks.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "mlx_qwenvl_http_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._answers = Counter(
            "mlx_qwenvl_answers",
            "Finished answers by why they ended",
            ("finish_reason",),
            registry=self.registry,
        )
        self._known = Counter(
            "mlx_qwenvl_prefix_hits",
            "Finished answers whose prompt was known in part",
            registry=self.registry,
        )
        self._tokens = {
            kind: Counter(f"mlx_qwenvl_{kind}_tokens", what, registry=self.registry)
            for kind, what in (
                ("prompt", "Tokens of the prompts of finished answers"),
                ("cached", "Prompt tokens that did not have to be computed"),
                ("image", "Prompt tokens of pictures"),
                ("video", "Prompt tokens of videos"),
                ("completion", "Tokens of finished answers"),
            )
        }
        self._seconds = {
            kind: Histogram(
                f"mlx_qwenvl_{kind}_seconds", what, registry=self.registry, buckets=SECONDS
            )
            for kind, what in (
                ("time_to_first_token", "From the request to its first token"),
                ("vision", "Reading pictures and running the vision tower"),
                ("prefill", "Computing a prompt"),
                ("wait", "Waiting before and between the work on a prompt"),
                ("decode", "From an answer's first token to its last"),
                ("inter_token", "Between two tokens of one answer"),
            )
        }
        looked = [
            ("open_calls", "Calls prepared, queued or answered", lambda: engine.open_calls),
            ("queued_jobs", "Jobs that wait to be read", self._of_scheduler("queued")),
            ("prefilling_jobs", "Jobs whose prompt is read", self._of_scheduler("prefilling")),
            ("running_answers", "Answers that are decoded", self._of_scheduler("running")),
            ("prefix_store_bytes", "Keys and values kept", self._of_store("prefixes", "nbytes")),
            ("feature_store_bytes", "Vision features kept", self._of_store("features", "nbytes")),
            ("active_memory_bytes", "Memory that MLX holds", lambda: engine.worker.active_bytes),
            ("step_seconds", "Age of the step under way", lambda: engine.step_s),
        ]
        looked += [(f"is_{s}", f"1 where it is {s}", partial(self._is, s)) for s in STATES]
        counted = (
            (
                "feature_hits",
                "Pictures that were known",
                self._of_store("features", "hits"),
            ),
            ("feature_misses", "Pictures that were not", self._of_store("features", "misses")),
            ("engine_crashes", "Failures of the engine", lambda: engine.crash_count),
            ("model_loads", "Times that the model was loaded", lambda: engine.load_count),
        )
        self.registry.register(_Looks([_Look(GaugeMetricFamily, *one) for one in looked]))
        self.registry.register(_Looks([_Look(CounterMetricFamily, *one) for one in counted]))

    def request(self, route: str, method: str, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(route, method if method in METHODS else "other", str(status)).inc()

    def heard(self, before: float | None, chunk: Chunk) -> None:
        """Note a piece of an answer.

        Args:
            before: When the piece before it was there, in `time.monotonic` seconds.
            chunk: The piece; the last one counts the answer.
        """
        if chunk.finish_reason is not None:
            self._finished(chunk)
        elif before is not None:
            self._seconds["inter_token"].observe(time.monotonic() - before)

    def _finished(self, last: Chunk) -> None:
        self._answers.labels(last.finish_reason).inc()
        if last.usage is not None:
            self._known.inc(last.usage.cached_tokens > 0)
            self._tokens["prompt"].inc(last.usage.prompt_tokens)
            self._tokens["cached"].inc(last.usage.cached_tokens)
            self._tokens["image"].inc(last.usage.image_tokens)
            self._tokens["video"].inc(last.usage.video_tokens)
            self._tokens["completion"].inc(last.usage.completion_tokens)
        if last.timings is not None:
            t = last.timings
            self._seconds["time_to_first_token"].observe(t.time_to_first_token_s)
            self._seconds["vision"].observe(t.vision_s)
            self._seconds["prefill"].observe(t.prefill_s)
            waited = t.time_to_first_token_s - t.vision_s - t.prefill_s
            self._seconds["wait"].observe(max(0.0, waited))
            self._seconds["decode"].observe(t.decode_s)

    def text(self) -> bytes:
        """All of it in Prometheus's text form."""
        return generate_latest(self.registry)

    def _is(self, state: str) -> float:
        return float(self._engine.state == state)

    def _of_scheduler(self, name: str) -> Callable[[], float]:
        def look() -> float:
            scheduler = self._engine.worker.scheduler
            return 0.0 if scheduler is None else float(getattr(scheduler, name))

        return look

    def _of_store(self, store: str, name: str) -> Callable[[], float]:
        def look() -> float:
            vlm = self._engine.vlm
            return 0.0 if vlm is None else float(getattr(getattr(vlm.stores, store), name))

        return look


@dataclass(frozen=True)
class _Look:
    """A number that is looked at when somebody asks."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    what: str
    look: Callable[[], float]


class _Looks:
    """Numbers for a registry."""

    def __init__(self, looks: list[_Look]) -> None:
        self._looks = looks

    def collect(self) -> Iterator[Metric]:
        """All of them as they are now."""
        for one in self._looks:
            yield one.kind(f"mlx_qwenvl_{one.name}", one.what, value=one.look())


class Counting:
    """Counts requests by the template of their route, which is one of a fixed set.

    Args:
        app: What answers.
        metrics: Where it is counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # With and without the version it is one address; FastAPI's releases differ in this.
            route = getattr(scope.get("route"), "path", "none").removeprefix("/v1")
            self._metrics.request(route, scope["method"], status)
        return None
