"""Bad inputs 1-73: addresses, data: URLs and pictures."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.golden.record_images import draw, encode
from tests.server.cases import Case, Elsewhere, NotHere, Row, ask, picture, posted

ADDRESSES = "tests/server/test_addresses.py::"
FETCH = "tests/test_fetch.py::"
MEDIA_TESTS = "tests/test_media.py::"
STORES = "tests/test_stores.py::"
IMAGES = "tests/test_image.py::"
INSIDE = Elsewhere(f"{ADDRESSES}test_what_leads_inside_is_refused_before_any_packet")
ADDRESS = Elsewhere(f"{ADDRESSES}test_all_others_do_not")
REDIRECTS = Elsewhere(f"{ADDRESSES}test_every_redirect_is_checked_like_the_first_url")
DAMAGED = Elsewhere(f"{MEDIA_TESTS}test_bad_files_are_refused_in_words")
ROOTED = Elsewhere(f"{MEDIA_TESTS}test_files_outside_are_refused_as_if_they_were_not_there")
NOT_PUBLIC = "not on the public internet"

PNG = encode(Image.fromarray(draw(40, 30, 3)), "PNG")


def url(address: str, says: str = NOT_PUBLIC) -> Case:
    """A picture that is named by text and refused, before any packet leaves."""
    return posted(address[:40], ask([picture(address)]), says=says)


def data(
    name: str,
    make: bytes | Callable[[], bytes],
    says: str = "",
    status: int | tuple[int, ...] = 400,
    kind: str = "image/png",
) -> Case:
    """A picture inside the request, its bytes made when they are needed."""

    def body() -> dict[str, object]:
        raw = make() if callable(make) else make
        return ask([picture(f"data:{kind};base64,{base64.b64encode(raw).decode()}")])

    return posted(name, body, status, says)


def image(name: str, width: int, height: int, status: int = 200, says: str = "") -> Case:
    """A sound picture of one colour."""
    picture = Image.new("RGB", (width, height), "teal")
    return data(name, lambda: encode(picture, "PNG"), says, status)


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG of three channels that need not be true."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", rows)]
    return b"".join([*parts, chunk(b"IEND", b"")])


def frames(kind: str, count: int) -> Callable[[], bytes]:
    """An animation of small pictures that differ."""

    def make() -> bytes:
        pictures = [Image.new("L", (32, 32), i % 251) for i in range(count)]
        file = io.BytesIO()
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
        return file.getvalue()

    return make


def tiff_loop() -> bytes:
    """A TIFF whose one directory names itself as the next."""
    raw = bytearray(encode(Image.new("L", (8, 8)), "TIFF"))
    start = struct.unpack("<I", raw[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", raw[start : start + 2])[0]
    raw[end : end + 4] = struct.pack("<I", start)
    return bytes(raw)


def many(count: int, width: int, height: int) -> dict[str, object]:
    raw = png(width, height, rows=zlib.compress(bytes((3 * width + 1) * height), 9))
    address = "data:image/png;base64," + base64.b64encode(raw).decode()
    return ask([picture(address)] * count)


URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
DIGITS = URL.partition(",")[2]
MODES = ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F")


def of_mode(mode: str) -> Case:
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "TIFF"
    return data(f"mode {mode}", lambda: encode(Image.new(mode, (56, 56), 0), kind), "", 200)


def turned(orientation: int) -> Case:
    def make() -> bytes:
        exif = Image.Exif()
        exif[274] = orientation
        return encode(Image.new("RGB", (56, 84)), "JPEG", exif=exif)

    return data(f"orientation {orientation}", make, "", 200)


MEDIA: dict[int, Row] = {
    1: (url("file:///etc/passwd", "--image-root"), ROOTED),
    2: (url("/etc/passwd", "--image-root"), ROOTED),
    3: (url("../etc/passwd", "--image-root"), ROOTED),
    4: (
        url("ftp://127.0.0.1/a.png", "ftp: URLs are not opened"),
        url("gopher://127.0.0.1/", "gopher: URLs are not opened"),
        url("://127.0.0.1/a.png", "--image-root"),
    ),
    5: (url("http://127.0.0.1/"), url("https://127.0.0.1/a.png"), INSIDE),
    6: (INSIDE,),
    7: (url("http://[::1]/"), INSIDE),
    8: (url("http://[::ffff:127.0.0.1]/"), INSIDE),
    9: (url("http://[::127.0.0.1]/"), INSIDE),
    10: (url("http://[64:ff9b::7f00:1]/"), INSIDE),
    11: (url("http://[2002:7f00:1::]/"), INSIDE),
    12: (url("http://169.254.169.254/latest/meta-data"), url("http://[fd00:ec2::254]/"), INSIDE),
    13: (*(url(f"http://{a}/") for a in ("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1")),),
    14: (url("http://0.0.0.0/"), url("http://0/", "usual form"), ADDRESS),
    15: (
        *(url(f"http://{a}/", "usual form") for a in ("127.1", "2130706433", "0x7f.1")),
        url("http://0177.0.0.1/", "not a valid URL"),
        INSIDE,
    ),
    16: (url("http://127。0。0。1/"),),
    17: (url("http://good.example\\@127.0.0.1/", "no backslash"),),
    18: (url("http://good.example@127.0.0.1/"), url("http://a:b@127.0.0.1/")),
    19: (
        url("http://127.0.0.1#@good.example/"),
        url("http://127%2e0.0.1/", "not a valid URL"),
        url("http://good.example\0.127.0.0.1/", "control characters"),
        INSIDE,
    ),
    20: (REDIRECTS,),
    21: (REDIRECTS,),
    22: (Elsewhere(f"{ADDRESSES}test_a_fourth_redirect_is_refused"),),
    23: (Elsewhere(f"{FETCH}test_the_connection_goes_to_the_address_that_was_checked"),),
    24: (INSIDE,),
    25: (Elsewhere(f"{FETCH}test_the_deadline_holds_for_a_resolver_that_hangs"),),
    26: (Elsewhere(f"{FETCH}test_the_deadline_holds_for_a_server_that_does_not_accept"),),
    27: (Elsewhere(f"{FETCH}test_one_deadline_holds_for_slow_bodies_and_headers"),),
    28: (Elsewhere(f"{FETCH}test_one_deadline_holds_for_slow_bodies_and_headers"),),
    29: (Elsewhere(f"{FETCH}test_a_content_length_that_lies_small_gives_a_truncated_picture"),),
    30: (
        Elsewhere(f"{FETCH}test_a_content_length_that_lies_large_is_an_error"),
        Elsewhere(f"{FETCH}test_bodies_over_the_cap_are_refused"),
    ),
    31: (Elsewhere(f"{FETCH}test_bodies_over_the_cap_are_refused"),),
    32: (
        Elsewhere(f"{FETCH}test_compressed_bombs_are_refused"),
        Elsewhere(f"{FETCH}test_bad_encodings_are_refused"),
    ),
    33: (Elsewhere(f"{FETCH}test_connections_that_are_reset_are_errors"),),
    34: (Elsewhere(f"{FETCH}test_bad_statuses_are_named"),),
    35: (Elsewhere(f"{FETCH}test_html_is_left_to_the_decoder"),),
    36: (data("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"), DAMAGED),
    37: (Elsewhere(f"{FETCH}test_certificates_that_are_not_trusted_are_refused"),),
    38: (Elsewhere(f"{ADDRESSES}test_a_name_is_asked_for_once_a_hop_and_no_proxy_is_asked"),),
    39: (url("http://127.0.0.1/v1/models"), url("http://127.0.0.1:1234/", "leads to port 1234")),
    40: (
        NotHere("no list of trusted hosts exists whose end a name could share"),
        Elsewhere(f"{ADDRESSES}test_a_host_that_ends_like_an_own_one_is_another_host"),
    ),
    41: (url("data:image/png;base64", "has no comma"), url(f"data:{DIGITS}", "has no comma")),
    42: (url("data:image/png;base64,%%%!", "no valid base64"), url("data:image/png,%zz", "text")),
    43: (
        posted("no padding", ask([picture(URL.rstrip("="))]), 200),
        url(f"{URL}===", "no valid base64"),
        url("data:image/png;base64,A", "no valid base64"),
    ),
    44: (
        posted("newlines", ask([picture(f"{URL[:60]}\n {URL[60:]} \r\n")]), 200),
        posted("quoted newlines", ask([picture(f"{URL[:60]}%0A{URL[60:]}")]), 200),
    ),
    45: (posted("url-safe", lambda: ask([picture("data:image/png;base64," + DIGITS.translate(
            str.maketrans("+/", "-_")))]), 200),),
    46: (posted("upper case", ask([picture("DATA:IMAGE/PNG;BASE64," + DIGITS)]), 200),),
    47: (posted("text/html", ask([picture("data:text/html;base64," + DIGITS)]), 200),),
    48: (data("a PNG that says JPEG", PNG, "", 200, "image/jpeg"),
         data("a page that says PNG", b"<!doctype html><p>", "an HTML page")),
    49: (url("data:image/png;base64,", "is empty"), url("data:,", "is empty"), url("", "is empty")),
    50: (posted("300 MB", lambda: b'{"messages": "' + b"A" * (300 * 10**6) + b'"}', 413,
                "at most 67108864 bytes"),
         posted("60 MB", lambda: ask([picture("data:image/png;base64," + "A" * 60 * 10**6)]),
                400, "bytes")),
    51: (posted("behind the end", ask([picture(URL.rstrip("=") + "%%%")]), 400, "no valid base64"),
         data("bytes behind the picture", PNG + b"trailing junk" * 100, "", 200)),
    52: (data("empty", b"", "is empty"),),
    53: (*(data(f"{i}/8 of a PNG", PNG[: len(PNG) * i // 8], "truncated") for i in range(1, 8)),
         Elsewhere(f"{MEDIA_TESTS}test_truncated_files_are_errors")),
    54: (data("0 x 0", png(0, 0)), data("0 x 9", png(0, 9)), DAMAGED),
    55: (data("2^31 - 1 sides", png(2**31 - 1, 2**31 - 1)), data("2^32 - 1", png(2**32 - 1, 1))),
    56: (data("13000 x 13000 in 57 bytes", png(13000, 13000), "too large"), DAMAGED),
    57: (image("1 x 1", 1, 1), image("1 x 2", 1, 2),
         image("1 x 4000", 1, 4000, 400, "200"), image("4000 x 1", 4000, 1, 400, "200"),
         Elsewhere(f"{IMAGES}test_elongated_pictures_are_refused_with_both_sides")),
    58: (image("27 x 27", 27, 27), image("28 x 28", 28, 28), image("29 x 29", 29, 29)),
    59: (image("min_pixels - 1", 56, 55), image("min_pixels", 56, 56), image("one more", 57, 56),
         Elsewhere(f"{IMAGES}test_smart_resize_keeps_its_promises")),
    60: (data("a GIF of 10^4 frames", frames("GIF", 10_000), "", 200, "image/gif"),
         data("a WebP of 500 frames", frames("WEBP", 500), "", 200),
         data("an APNG of 1000 frames", frames("PNG", 1000), "", 200)),
    61: (*map(of_mode, MODES), Elsewhere(f"{MEDIA_TESTS}test_deep_grey_is_scaled_not_clipped")),
    62: (*map(turned, (*range(1, 9), 99)),
         Elsewhere(f"{MEDIA_TESTS}test_malformed_exif_is_ignored")),
    63: (data("70 MB of zTXt", lambda: png(
            9, 9, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70 * 2**20)))), "damaged"),
         data("70 MB of iCCP", lambda: png(
            9, 9, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(70 * 2**20)))), "damaged")),
    64: (data("a loop of directories", tiff_loop, "", (200, 400)),
         data("1000 pages", frames("TIFF", 1000), "", 200)),
    65: (data("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
         data("PSD", b"8BPS\0\1" + bytes(40), "a Photoshop file"),
         data("FITS", b"SIMPLE  =                    T", "a FITS file"),
         data("WMF", b"\xd7\xcd\xc6\x9a" + bytes(40), "no known format"),
         data("JP2", b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
         data("PDF", b"%PDF-1.7\n", "a PDF document"), DAMAGED),
    66: (data("AVIF", b"\0\0\0\x1cftypavif" + bytes(40), "an AVIF picture"),
         data("HEIC of nothing", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(40)),
         Elsewhere(f"{MEDIA_TESTS}test_heic_photo_is_upright")),
    67: (data("a BMP before a PNG", b"BM" + PNG, "BMP data"),
         data("a PNG that is a ZIP too", PNG + b"PK\x03\x04" + bytes(100), "", 200),
         Elsewhere(f"{MEDIA_TESTS}test_a_file_of_one_format_behind_anothers_first_bytes")),
    68: (data("a wrong checksum", PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:], "damaged"),
         Elsewhere(f"{MEDIA_TESTS}test_a_wrong_checksum_is_an_error")),
    69: (data("NaN", lambda: encode(Image.new("F", (56, 56), float("nan")), "TIFF"), "mode F"),
         Elsewhere(f"{MEDIA_TESTS}test_floats_on_no_known_scale_are_refused")),
    70: (Elsewhere(f"{IMAGES}test_digest_tells_shapes_of_one_colour_apart"),
         Elsewhere(f"{STORES}test_another_picture_is_never_answered_from_the_store")),
    71: (Elsewhere(f"{STORES}test_a_url_with_new_content_is_another_picture"),),
    72: (posted("64 pictures", ask([picture(URL)] * 64), 400, "64 pictures came, at most 32 pass"),
         posted("a picture without one", ask([{"type": "image"}]), 400, "names no image"),
         Elsewhere("tests/server/test_media_policy.py::"
                   "test_pictures_are_counted_over_all_messages_before_one_is_opened")),
    73: (posted("5 x 49 million pixels", lambda: many(5, 7000, 7000), 400,
                "more than 200000000 pixels together", deadline_s=30.0),
         Elsewhere("tests/server/test_media_policy.py::test_each_request_has_a_budget_of_its_own")),
}  # fmt: skip
