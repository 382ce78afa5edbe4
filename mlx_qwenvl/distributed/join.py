"""How the processes that `mlx.launch` starts find each other.

They meet at a port of rank 0's first, one above those that MLX uses, and only then does MLX connect
them: its own waiting has no end and cannot be broken off.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_qwenvl.distributed.commands import Hello
from mlx_qwenvl.distributed.line import SILENCE_S, Line, gone
from mlx_qwenvl.distributed.ranks import Ranks
from mlx_qwenvl.distributed.wire import WireError, read_word, word_bytes
from mlx_qwenvl.errors import OptionError, RanksLost
from mlx_qwenvl.models.share import Share

JOIN_S = 60.0  # in which all ranks have to be there
RETRY_S = 0.1  # between attempts to reach rank 0
HELLO_S = 5.0  # in which who connects has to say who it is
HELLO_BYTES = 1024  # that it may take for that
LEAST_SILENCE_S = 2  # four signs of life
SILENCE_VARIABLE = "MLX_QWENVL_RANK_SILENCE"  # seconds
ADDRESS_VARIABLE = "MLX_QWENVL_RANK_ADDRESS"  # HOST or HOST:PORT at which rank 0 is met


@dataclass(frozen=True)
class Place:
    """One process among those that were launched.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        host: Address of rank 0.
        port: Where rank 0 is met.
    """

    rank: int
    size: int
    host: str
    port: int


def join() -> Ranks | None:
    """Meet the other processes of this launch; None where there are none.

    A process that is not rank 0 leaves Ctrl-C to rank 0 from here on, which tells it.

    Raises:
        OptionError: The launcher's variables make no sense.
        RanksLost: Not all of them came in time.
    """
    place = place_of(os.environ)
    if place is None:
        return None
    if place.rank > 0 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_s = silence_of(os.environ)
    end = time.monotonic() + JOIN_S
    peers = _gathered(place, end) if place.rank == 0 else {0: _reached(place, end)}
    # MLX holds Python while it connects; this ends the process if one of them is gone by then.
    faulthandler.dump_traceback_later(JOIN_S, exit=True)
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise RanksLost(f"MLX cannot connect the ranks: {error}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    if (group.rank(), group.size()) != (place.rank, place.size):
        raise RanksLost(
            f"MLX calls this rank {group.rank()} of {group.size()}, the launcher {place.rank} of "
            f"{place.size}"
        )
    # Threads that take turns leave sums under way, each in streams of its own. On all ranks sums
    # have to come in one order, so they share a stream, whose order is that of the turns.
    stream = mx.new_thread_unsafe_stream(mx.cpu)
    # The first to be connected hears nothing of those that MLX is still at.
    line = Line(peers, silence_s, first_s=max(end - time.monotonic(), 0.0))
    return Ranks(Share.of(group, stream), line, stream)


def silence_of(environment: Mapping[str, str]) -> float:
    """Seconds of silence after which a rank counts as gone.

    Raises:
        OptionError: The variable is no number of seconds.
    """
    said = environment.get(SILENCE_VARIABLE)
    if said is None:
        return SILENCE_S
    if not (said.isascii() and said.isdigit() and int(said) >= LEAST_SILENCE_S):
        raise OptionError(
            f"{SILENCE_VARIABLE} is {said!r}; expected seconds from {LEAST_SILENCE_S} up"
        )
    return int(said)


def place_of(environment: Mapping[str, str]) -> Place | None:
    """What the launcher's variables say; None where one process was launched, or none.

    Raises:
        OptionError: They contradict each other, or name files that cannot be read.
    """
    rank = environment.get("MLX_RANK")
    if rank is None:
        return None
    if not rank.isdecimal():
        raise OptionError(f"MLX_RANK is {rank!r}, expected a number")
    hosts = _read(environment, "MLX_HOSTFILE")
    if hosts is not None:
        addresses = [str(address).rpartition(":") for node in hosts for address in node]
        size, host = len(hosts), addresses[0][0]
        ports = [int(told) for _, _, told in addresses if told.isdecimal()]
        port = max(ports) + 1 if len(ports) == len(addresses) else 0
    else:
        devices = _read(environment, "MLX_IBV_DEVICES")
        size = len(devices or [])
        host, _, after = environment.get("MLX_JACCL_COORDINATOR", "").rpartition(":")
        port = int(after) + 1 if after.isdecimal() else 0
    if size < 2:
        if environment.get("MLX_WORLD_SIZE", "1") != "1":
            raise OptionError("ranks meet over ring or jaccl; mlx.launch --backend ring")
        return None
    named = environment.get(ADDRESS_VARIABLE)
    if named:
        host, colon, told = named.partition(":")
        if colon:
            port = int(told) if told.isdecimal() else 0
    if int(rank) >= size or not host or not 0 < port < 2**16:
        raise OptionError(
            f"MLX_RANK is {rank} of {size} ranks that meet at {host or 'no host'}:{port}; "
            f"start them with mlx.launch, or say where with {ADDRESS_VARIABLE}=HOST:PORT"
        )
    return Place(int(rank), size, host, port)


def _read(environment: Mapping[str, str], name: str) -> list[list[str]] | None:
    """A list in a file that a variable names; None where there is none, or nothing in it."""
    path = environment.get(name)
    if not path:
        return None
    try:
        text = Path(path).read_text().strip()
        found = json.loads(text) if text else None
    except (OSError, ValueError) as error:
        raise OptionError(f"{name} is {path!r}, which cannot be read: {error}") from None
    if found is not None and not (
        isinstance(found, list) and all(node and isinstance(node, list) for node in found)
    ):
        raise OptionError(f"{name} is {path!r}, expected a list of hosts in it")
    return found or None


def _gathered(place: Place, end: float) -> dict[int, socket.socket]:
    """Connections from all others to rank 0."""
    peers: dict[int, socket.socket] = {}
    try:
        listener = socket.create_server((place.host, place.port))
    except OSError as error:
        reason = (error.strerror or "I/O error").split(" (")[0]
        raise RanksLost(
            f"rank 0 cannot listen at {place.host}:{place.port}: {reason}; take other ports "
            f"(mlx.launch --starting-port) or {ADDRESS_VARIABLE}=HOST:PORT"
        ) from None
    with listener:
        while len(peers) < place.size - 1:
            listener.settimeout(max(end - time.monotonic(), 0.001))
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                missing = [str(r) for r in range(1, place.size) if r not in peers]
                raise RanksLost(
                    f"rank {', '.join(missing)} did not come within {JOIN_S:.0f} s"
                ) from None
            rank = _who(sock, place)
            if rank is None or rank in peers:
                sock.close()  # nobody of ours
            else:
                peers[rank] = sock
    for rank, sock in peers.items():  # all are there
        try:
            sock.sendall(word_bytes(Hello(0, place.size)))
        except OSError:
            raise RanksLost(gone(rank)) from None
    return peers


def _who(sock: socket.socket, place: Place) -> int | None:
    """Which rank has connected; None for who is none."""
    sock.settimeout(HELLO_S)
    with suppress(OSError, WireError):
        word = read_word(sock, most=HELLO_BYTES)
        if isinstance(word, Hello) and word.size == place.size and 0 < word.rank < place.size:
            return word.rank
    return None


def _reached(place: Place, end: float) -> socket.socket:
    """A connection to rank 0, made as soon as it is there."""
    reason = "nobody answers"
    while (left := end - time.monotonic()) > 0:
        try:
            sock = socket.create_connection((place.host, place.port), timeout=left)
            sock.sendall(word_bytes(Hello(place.rank, place.size)))
            sock.settimeout(max(end - time.monotonic(), 0.001))
            if read_word(sock, most=HELLO_BYTES) == Hello(0, place.size):
                return sock
            reason = "it is none of ours"
        except (OSError, WireError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        time.sleep(RETRY_S)
    raise RanksLost(
        f"rank {place.rank} cannot reach rank 0 at {place.host}:{place.port} within "
        f"{JOIN_S:.0f} s: {reason}"
    )
