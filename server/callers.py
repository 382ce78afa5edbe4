"""Who may call: size, Host, Origin and key of a request's head, before its body is read.

Each check raises `Refused`; none of them lets a request in on its own.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.types import Scope

from mlx_qwenvl.errors import OptionError

from .refused import Refused
from .settings import Settings

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
MAX_HEADERS = 128
MAX_HEAD_BYTES = 32 * 2**10  # bytes of request target, header names and values together

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::[0-9]{1,5})?")

# Desktop apps bring schemes that no web page can have. A page on the user's own machine may call,
# because somebody who can serve one there can call without a browser as well. The origin `null` is
# not here: a sandboxed frame of any web page sends it.
DESKTOP_ORIGINS = (
    r"(?:app|file|tauri|capacitor|ionic|vscode-webview|vscode-file)://[a-z0-9_.:-]*",
    r"https?://(?:localhost|tauri\.localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?",
)


def headers(scope: Scope, name: bytes) -> list[bytes]:
    """Every value that a request has under one name, which is in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def check_head(scope: Scope) -> None:
    """Refuse methods that nothing here has, and heads that are larger than any client's.

    The HTTP parser bounds only a head that comes in pieces.
    """
    if scope["method"] not in METHODS:
        raise Refused(405, f"this method is not served; expected one of {', '.join(METHODS)}")
    if headers(scope, b"transfer-encoding") and headers(scope, b"content-length"):
        raise Refused(400, "the request has a length and chunks; expected one of them")
    fields = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    size += sum(len(key) + len(value) for key, value in fields)
    if len(fields) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        most = f"at most {MAX_HEADERS} header fields and {MAX_HEAD_BYTES} bytes are read"
        raise Refused(431, f"the request has {len(fields)} fields and {size} bytes of head; {most}")


def host_names(settings: Settings) -> frozenset[str]:
    """The names under which a server may be called, whatever the port."""
    own = () if settings.host in ("0.0.0.0", "::", "") else (settings.host,)
    names = ("localhost", "127.0.0.1", "::1", *own, *settings.allowed_hosts)
    return frozenset(_host_name(name.lower()) for name in names)


def check_host(scope: Scope, names: frozenset[str]) -> None:
    """Refuse a name that is not the server's: a web page may have its own name resolve to us."""
    given = headers(scope, b"host")
    match = HOST.fullmatch(given[0].decode("latin-1").lower()) if len(given) == 1 else None
    if match is None:
        raise Refused(400, "expected one Host header with a name or an address")
    name = _host_name(match["name"])
    # The address that the connection came to is no name that somebody else could have resolved.
    server = scope.get("server")
    if name in names or (server and name == _host_name(str(server[0]).lower())):
        return
    flag = "start the server with --allowed-host to serve it under another name"
    raise Refused(421, f"this Host is not served; {flag}", "host_not_allowed")


def _host_name(name: str) -> str:
    bare = name.removeprefix("[").removesuffix("]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def origin_pattern(settings: Settings) -> str:
    """What the Origin of a page or an app has to look like, as a regular expression.

    Raises:
        OptionError: An origin of the operator's that would let everybody in, or is none.
    """
    patterns = list(DESKTOP_ORIGINS)
    for origin in settings.allowed_origins:
        scheme, _, rest = origin.lower().rstrip("/").partition("://")
        if rest == "*" and re.fullmatch(r"[a-z][a-z0-9+-]*", scheme) and scheme[:4] != "http":
            patterns.append(rf"{re.escape(scheme)}://[a-z0-9_.:-]*")
        elif re.fullmatch(
            r"[a-z][a-z0-9+-]*://(\[[0-9a-f:]+\]|[a-z0-9_.-]+)(:\d+)?", f"{scheme}://{rest}"
        ):
            patterns.append(re.escape(f"{scheme}://{rest}"))
        else:
            raise OptionError(
                f"the allowed origin is {origin!r}, expected https://name, or scheme://* of an app"
            )
    return f"(?i:{'|'.join(patterns)})"


def check_origin(scope: Scope, allowed: re.Pattern[str]) -> None:
    """Refuse a page of somebody else's: a simple request would run, even if no answer is read."""
    given = headers(scope, b"origin")
    if not given:
        return
    origin = given[0].decode("latin-1")
    if len(given) == 1 and (allowed.fullmatch(origin) or _is_own(scope, origin)):
        return
    flag = "start the server with --allowed-origin to let a page in"
    raise Refused(403, f"this Origin may not call; {flag}", "origin_not_allowed")


def _is_own(scope: Scope, origin: str) -> bool:
    # The Host has been checked, so a page under it came from here.
    host = headers(scope, b"host")[0].decode("latin-1").lower()
    return origin.lower() in (f"http://{host}", f"https://{host}")


def key_digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    """Keys in a form of one length, whose comparison tells nothing about them."""
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def check_key(scope: Scope, digests: tuple[bytes, ...]) -> None:
    """Refuse a request without one of the keys; where there are none, any or no key passes."""
    if not digests:
        return
    authorization, api_key = headers(scope, b"authorization"), headers(scope, b"x-api-key")
    challenge = ((b"www-authenticate", b"Bearer"),)
    if len(authorization) > 1 or len(api_key) > 1 or not (authorization or api_key):
        message = "an API key is needed: one header Authorization: Bearer KEY, or x-api-key: KEY"
        raise Refused(401, message, "invalid_api_key", challenge)
    given = [value.strip() for value in api_key]
    for value in authorization:
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(token.strip())
    passed = False
    for token in given:
        digest = hashlib.sha256(token).digest()
        for expected in digests:  # all of them, so that the time does not say which one came close
            passed |= hmac.compare_digest(digest, expected)
    if not passed:
        message = "the API key is not valid; expected Authorization: Bearer KEY or x-api-key: KEY"
        raise Refused(401, message, "invalid_api_key", challenge)


def has_body(scope: Scope) -> bool:
    """Whether a body follows the head."""
    length = headers(scope, b"content-length")
    return bool(headers(scope, b"transfer-encoding")) or any(v.strip() != b"0" for v in length)


def check_content_type(scope: Scope) -> None:
    """Refuse a body that a web page could send without asking first, or in another encoding."""
    given = headers(scope, b"content-type")
    essence, *parameters = given[0].decode("latin-1").lower().split(";") if given else [""]
    is_json = re.fullmatch(r"application/(json|[a-z0-9.-]+\+json)", essence.strip())
    if len(given) != 1 or not is_json:
        raise Refused(415, "expected one header Content-Type: application/json")
    for parameter in parameters:
        name, _, value = (part.strip() for part in parameter.partition("="))
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise Refused(415, "the body is in another charset; expected UTF-8")
    if any(
        v.strip().lower() not in (b"", b"identity") for v in headers(scope, b"content-encoding")
    ):
        raise Refused(415, "compressed bodies are not read; send it without Content-Encoding")
