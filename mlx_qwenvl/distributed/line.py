"""Connections between rank 0 and the others, beside those of MLX: words, signs of life, ends.

A collective of MLX waits for ever for a rank that has stopped, in code that nothing interrupts. So
every process hears from its peers twice a second, in threads of its own, and knows within
`SILENCE_S` that one is gone. Who computes then has `GRACE_S` to find out by itself, as it does
where MLX sees the connection close; after that the process ends with one line that says why.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mlx_qwenvl.distributed.commands import End
from mlx_qwenvl.distributed.wire import BEAT, WireError, read_word, word_bytes
from mlx_qwenvl.errors import RanksLost

BEAT_S = 0.5  # between signs of life
SILENCE_S = 8.0  # after which a peer counts as gone
GRACE_S = 2.0  # that a step may go on after a peer has gone


class Ended(SystemExit):
    """Rank 0 has ended, and this process ends with the same exit code.

    It is no `Exception`: a scheduler would take it for the fault of a question.
    """


class Line:
    """The connections of one process.

    Args:
        peers: By rank: all others for rank 0, rank 0 for the others.
        silence_s: After which a peer counts as gone, in seconds.
        first_s: That its first sign of life may take beyond that.

    Attributes:
        reason: Why the ranks cannot go on, or None.
        grace_s: As `GRACE_S`; longer for who has more to do than to say so.
    """

    def __init__(
        self,
        peers: Mapping[int, socket.socket],
        silence_s: float = SILENCE_S,
        first_s: float = 0.0,
    ) -> None:
        self._peers, self._silence_s = dict(peers), silence_s
        self.reason: str | None = None
        self.grace_s = GRACE_S
        self._code = 1  # to leave with once `reason` is there
        self._lost_at = 0.0
        self._busy_since: float | None = None
        self._is_closed = False
        self._heard_at = dict.fromkeys(self._peers, time.monotonic() + first_s)
        self._words: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._losing = threading.Lock()
        self._when_lost: Callable[[str], None] | None = None
        for rank, sock in self._peers.items():
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(None)
            threading.Thread(
                target=self._listen, args=(rank, sock), name=f"rank {rank}", daemon=True
            ).start()
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def tell(self, word: Any) -> None:
        """Say something to all peers.

        Raises:
            RanksLost: One of them is gone.
        """
        frame = word_bytes(word)
        self._check()
        with self._sending:
            for rank, sock in self._peers.items():
                try:
                    sock.sendall(frame)
                except OSError:
                    self._lose(gone(rank))
        self._check()

    def hear(self) -> tuple[int, Any]:
        """Wait for a peer's next word; give who said it, and what.

        Raises:
            RanksLost: A peer is gone.
            Ended: It has ended as it should.
        """
        since, self._busy_since = self._busy_since, None
        try:
            rank, word = self._words.get()
        finally:
            self._busy_since = since
        if word is None:
            self._words.put((rank, None))  # for who else asks
            self._check()
            raise Ended(self._code)
        return rank, word

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Where something is computed that may wait for a peer in vain."""
        since, self._busy_since = self._busy_since, time.monotonic()
        try:
            yield
        finally:
            self._busy_since = since

    def when_lost(self, tell: Callable[[str], None]) -> None:
        """Have something told, in some thread, as soon as a peer is gone; at once if it is."""
        with self._losing:
            self._when_lost, reason = tell, self.reason
        if reason:
            tell(reason)

    def lost_because(self, error: BaseException) -> RanksLost:
        """What a failed step is told as: that a peer is gone, where it turns out to be so.

        Raises:
            Ended: Rank 0 has ended meanwhile, which is why.
        """
        end = time.monotonic() + GRACE_S
        while not self._lost_at and time.monotonic() < end:
            time.sleep(BEAT_S / 10)
        if self._lost_at and self.reason is None:
            raise Ended(self._code) from error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return self.lose(f"a rank failed and the others cannot go on ({said})")

    def lose(self, reason: str) -> RanksLost:
        """Give up, here and at the peers; the error says why, which may be an earlier reason."""
        self._lose(reason)
        return RanksLost(self.reason or reason)

    def close(self, code: int, why: str) -> None:
        """Tell the peers that this process ends, and listen no more."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(RanksLost, OSError):
            self._say_end(code, why)
        for sock in self._peers.values():
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def _check(self) -> None:
        if self.reason:
            raise RanksLost(self.reason)

    def _say_end(self, code: int, why: str, besides: int | None = None) -> None:
        frame = word_bytes(End(code, why))
        # Whoever sends to one who does not take it holds the lock, and has lost it soon.
        if not self._sending.acquire(timeout=BEAT_S):
            return
        try:
            for rank, sock in self._peers.items():
                if rank != besides:
                    with suppress(OSError):
                        sock.send(frame, socket.MSG_DONTWAIT)
        finally:
            self._sending.release()

    def _listen(self, rank: int, sock: socket.socket) -> None:
        """Hear one peer to its end."""
        try:
            while True:
                word = read_word(sock, lambda: self._note(rank))
                if isinstance(word, End):
                    self._end(rank, word)
                    return
                self._words.put((rank, word))
        except WireError as error:
            self._lose(f"rank {rank} is not understood: {error}", besides=rank)
        except OSError:
            if not self._is_closed:
                self._lose(gone(rank), besides=rank)

    def _note(self, rank: int) -> None:
        self._heard_at[rank] = time.monotonic()

    def _end(self, rank: int, end: End) -> None:
        """Take note that a peer has ended."""
        if self._is_closed:
            return
        if end.why:
            why = end.why if end.why.startswith("rank ") else f"rank {rank}: {end.why}"
            self._lose(why, besides=rank)
        elif rank > 0:
            self._lose(f"rank {rank} has ended with exit code {end.code}", besides=rank)
        else:
            with self._losing:
                self._code, self._lost_at = end.code, time.monotonic()
                self._is_closed = True
            self._words.put((rank, None))

    def _lose(self, reason: str, besides: int | None = None) -> None:
        """Take note that the ranks cannot go on; the first reason is the one that is told."""
        with self._losing:
            if self.reason is not None or self._is_closed:
                return
            self.reason, self._lost_at, tell = reason, time.monotonic(), self._when_lost
        self._say_end(1, reason, besides)
        for sock in self._peers.values():
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # or who sends there would go on waiting
        self._words.put((-1, None))
        if tell is not None:
            tell(reason)

    def _watch(self) -> None:
        """Give signs of life, miss those of others, and end what waits in vain."""
        while True:
            begin = time.monotonic()
            time.sleep(BEAT_S)
            stood_still = max(0.0, time.monotonic() - begin - BEAT_S)
            if self._lost_at:
                self._end_what_waits()
                continue
            if self._is_closed:
                return
            if self._sending.acquire(blocking=False):  # else something is being said
                try:
                    for sock in self._peers.values():
                        with suppress(OSError):  # a full one hears nothing, nor is it heard of
                            sock.send(BEAT, socket.MSG_DONTWAIT)
                finally:
                    self._sending.release()
            now = time.monotonic()
            for rank, at in list(self._heard_at.items()):
                # While this process stood still, what came was not read.
                if at < now:
                    self._heard_at[rank] = at = min(at + stood_still, now)
                if now - at > self._silence_s:
                    why = f"rank {rank} has been silent for {self._silence_s:g} s"
                    self._lose(why, besides=rank)

    def _end_what_waits(self) -> None:
        since = self._busy_since
        if since is None or time.monotonic() - max(since, self._lost_at) < self.grace_s:
            return
        if self.reason:
            with suppress(OSError):
                os.write(2, f"mlx-qwenvl: {self.reason}\n".encode())
        leave(self._code)


def leave(code: int) -> None:
    """End the process now: MLX would wait at the exit for what never comes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def gone(rank: int) -> str:
    """What is said of a rank whose connection is closed."""
    return f"rank {rank} is gone: its connection was closed"
