"""What a file is, from its first bytes; its name and its label are never asked."""

from __future__ import annotations

__all__ = ["EXPECTED", "EXPECTED_VIDEO", "container_of", "format_of", "looks_like"]

EXPECTED_VIDEO = "MP4, QuickTime, Matroska, WebM, AVI, MPEG-TS, MPEG-PS or GIF"
EXPECTED = "PNG, JPEG, WEBP, GIF, BMP, TIFF or HEIC"

# First bytes -> the one decoder that gets to see the file, by Pillow's name for it (Image.open
# raises KeyError for names that it does not know). WEBP and HEIF are told apart in `format_of`.
OPENED = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
QUICKTIME_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# First bytes -> what a refused file is called in the message.
REFUSED = {
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop file",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\x01\0": "a Windows icon",
    b"SIMPLE  =": "a FITS file",
    b"\x1a\x45\xdf\xa3": "a Matroska or WebM video",
    b"RIFF": "an AVI video or a sound file",
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a list of files",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}


def format_of(data: bytes) -> str | None:
    """Returns which decoder opens the data; None for none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and b"avif" not in data[16:40]:
        return "HEIF"
    return next((name for magic, name in OPENED.items() if data.startswith(magic)), None)


def container_of(data: bytes) -> str | None:
    """Returns which of FFmpeg's containers opens the data as a video; None for none.

    None of them reads another file or a URL.
    """
    if data[4:8] in QUICKTIME_BOXES and format_of(data) != "HEIF":
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"\0\0\1\xba"):
        return "mpeg"
    # Packets of 188 bytes, behind a time of 4 bytes each in what cameras write.
    for begin, size in ((0, 188), (4, 192)):
        if len(data) > begin + 2 * size and data[begin : begin + 2 * size + 1 : size] == b"GGG":
            return "mpegts"
    return None


def looks_like(data: bytes) -> str | None:
    """Returns what data that no decoder opens seems to be; None where there is no sign of it."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp":
        avif = data[8:12] in (b"avif", b"avis") or b"avif" in data[16:40]
        return "an AVIF picture" if avif else "an MP4 or QuickTime video"
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return next((name for magic, name in REFUSED.items() if data.startswith(magic)), None)


def is_text(data: bytes) -> bool:
    head = data[:1024]
    return not any(byte < 9 or 13 < byte < 32 for byte in head)
