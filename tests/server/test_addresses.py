"""server/addresses.py and what a server fetches: no packet leaves, whatever a test asks for."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import httpcore2
import pytest

from mlx_qwenvl.errors import FetchError, MediaError
from mlx_qwenvl.inputs.media import open_image
from server.addresses import is_public
from server.media import MediaPolicy
from server.settings import Settings

PUBLIC = ["93.184.215.14", "8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1", "2400::1"]
INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
    "100.127.255.255", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.9", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1",
    "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "4000::1",
    "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fe80::1", "fe80::1%lo", "febf::1", "fec0::1",
    "feff::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_pass(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", INSIDE)
def test_all_others_do_not(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


class Net:
    """A resolver and a network that only note what they are asked for."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.answers: list[bytes] = []

    def resolve(self, host: Any, port: Any, *_: object, **__: object) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        try:
            addresses = [str(ipaddress.ip_address(name))]
        except ValueError:
            if name not in self.names:
                raise socket.gaierror(-2, "Name or service not known") from None
            addresses = self.names[name]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port or 0)) for a in addresses]

    def connect(self, host: str, port: int, *_: object, **__: object) -> Any:
        self.connected.append((host, port))
        if not self.answers:
            raise httpcore2.ConnectError("no network here")
        return httpcore2.MockStream([self.answers.pop(0)])


@pytest.fixture(autouse=True)
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    net = Net()
    monkeypatch.setattr(socket, "getaddrinfo", net.resolve)
    monkeypatch.setattr(
        httpcore2.SyncBackend, "connect_tcp", lambda _, *args, **kwargs: net.connect(*args)
    )
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # which must not be used
        monkeypatch.setenv(name, "http://proxy.example:3128")
        monkeypatch.setenv(name.upper(), "http://proxy.example:3128")
    return net


def refused(url: str, match: str) -> None:
    with pytest.raises(MediaError, match=match) as caught:
        open_image(url, limits=MediaPolicy.of(Settings()).limits())
    message = str(caught.value)
    assert "MARK" not in message
    assert message.isprintable() and len(message) < 300


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


NOT_PUBLIC = "not on the public internet"
ODD = "nor an address in its usual form|not a valid URL"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        *((f"http://{address}/", NOT_PUBLIC) for address in INSIDE if ":" not in address),
        *((f"http://[{address}]/", NOT_PUBLIC) for address in INSIDE
          if ":" in address and "%" not in address and address != "::ffff:8.8.8.8"),
        ("http://127.1/", ODD),
        ("http://2130706433/", ODD),
        ("http://0x7f.1/", ODD),
        ("http://0x7f000001/", ODD),
        ("http://0177.0.0.1/", ODD),
        ("http://0/", ODD),
        ("http://127.0.0.1./", ODD),
        ("http://127。0。0。1/", NOT_PUBLIC),
        ("http://\uff11\uff12\uff17.0.0.1/", f"{NOT_PUBLIC}|{ODD}"),
        ("http://user:MARK@127.0.0.1/", NOT_PUBLIC),
        ("http://pictures.example@127.0.0.1/?MARK", NOT_PUBLIC),
        ("http://pictures.example#@127.0.0.1/", "cannot be reached"),
        ("http://127.0.0.1#@pictures.example/", NOT_PUBLIC),
        ("http://pictures.example\\@127.0.0.1/", "no backslash"),
        ("http://127.0.0.1%00.pictures.example/", "not a valid URL"),
        ("http://127%2e0%2e0%2e1/", "not a valid URL"),
        ("http://pictures.example%2f@127.0.0.1/", NOT_PUBLIC),
        ("http://[fe80::1%25lo]/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://\0.example/", "control characters"),
        ("http:///etc/passwd", "no host"),
        ("http:127.0.0.1/", "names no picture"),
        ("http://localhost/", NOT_PUBLIC),
        ("http://LOCALHOST./", NOT_PUBLIC),
        ("http://foo.localhost/", NOT_PUBLIC),
        ("http://inside.example/?MARK", NOT_PUBLIC),
        ("http://both.example/", NOT_PUBLIC),
        ("http://both-turned.example/", NOT_PUBLIC),
        ("http://six.example/", NOT_PUBLIC),
        ("http://127.0.0.1.nip.example/", NOT_PUBLIC),
        ("http://pictures.example:22/", "leads to port 22; expected one of 80, 443"),
        ("https://pictures.example:8443/", "leads to port 8443"),
        ("http://pictures.example:0/", "leads to port|not a valid URL"),
        ("ftp://pictures.example/a.png", "ftp: URLs are not opened"),
        ("gopher://127.0.0.1/", "gopher: URLs are not opened"),
        ("file:///etc/passwd", "--image-root"),
        ("file://pictures.example/etc/passwd", "--image-root"),
        ("/etc/passwd", "--image-root"),
        ("../etc/passwd", "--image-root"),
    ],
)  # fmt: skip
def test_what_leads_inside_is_refused_before_any_packet(net: Net, url: str, match: str) -> None:
    net.names = {
        "pictures.example": ["93.184.215.14"],
        "localhost": ["127.0.0.1"],
        "localhost.": ["127.0.0.1"],
        "foo.localhost": ["::1"],
        "inside.example": ["10.0.0.7"],
        "both.example": ["93.184.215.14", "10.0.0.7"],
        "both-turned.example": ["10.0.0.7", "93.184.215.14"],
        "six.example": ["93.184.215.14", "64:ff9b::7f00:1"],
        "127.0.0.1.nip.example": ["127.0.0.1"],
    }
    refused(url, match)
    allowed = [("93.184.215.14", 80)] if "#@127" in url else []  # everything behind # is no host
    assert net.connected == allowed


def test_a_mapped_public_address_is_what_it_holds(net: Net) -> None:
    refused("http://[::ffff:8.8.8.8]/", "cannot be reached")
    assert net.connected == [("8.8.8.8", 80)]


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("http://127.0.0.1/", NOT_PUBLIC),
        ("//169.254.169.254/latest/meta-data", NOT_PUBLIC),
        ("http://inside.example/", NOT_PUBLIC),
        ("http://127.1/", ODD),
        ("http://pictures.example:6379/", "leads to port 6379"),
        ("file:///etc/passwd", "leads to a file: URL"),
        ("data:image/png;base64,AAAA", "leads to a data: URL"),
        ("http://pictures.example\\@127.0.0.1/", "no backslash"),
    ],
)
def test_every_redirect_is_checked_like_the_first_url(net: Net, location: str, match: str) -> None:
    net.names = {"pictures.example": ["93.184.215.14"], "inside.example": ["10.0.0.7"]}
    net.answers = [redirect(location)]
    refused("http://pictures.example/a.png?X-Signature=MARK", match)
    assert net.connected == [("93.184.215.14", 80)]


def test_a_fourth_redirect_is_refused(net: Net) -> None:
    net.names = {"pictures.example": ["93.184.215.14"]}
    net.answers = [redirect("/again")] * 9
    refused("http://pictures.example/", "more than 3 redirects")
    assert len(net.connected) == 4


def test_a_name_is_asked_for_once_a_hop_and_no_proxy_is_asked(net: Net) -> None:
    net.names = {"pictures.example": ["93.184.215.14"]}
    refused("http://pictures.example/", "cannot be reached")
    assert net.asked == ["pictures.example"]
    assert net.connected == [("93.184.215.14", 80)]


def test_a_host_that_ends_like_an_own_one_is_another_host(net: Net) -> None:
    # There is no list of hosts that are trusted, so no end of a name can pass for one.
    net.names = {"evilgood.example": ["10.0.0.7"], "good.example": ["93.184.215.14"]}
    refused("http://evilgood.example/", NOT_PUBLIC)
    assert net.connected == []


def test_urls_can_be_turned_off(net: Net) -> None:
    limits = MediaPolicy.of(Settings(remote_images=False)).limits()
    with pytest.raises(MediaError, match="not opened here"):
        open_image("http://pictures.example/", limits=limits)
    assert (net.asked, net.connected) == ([], [])


def test_the_message_does_not_tell_what_a_name_means_in_here(net: Net) -> None:
    net.names = {"inside.example": ["10.0.0.7"]}
    with pytest.raises(FetchError) as caught:
        open_image("http://inside.example/a", limits=MediaPolicy.of(Settings()).limits())
    assert "10.0" not in str(caught.value)
