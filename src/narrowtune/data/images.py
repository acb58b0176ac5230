"""Pictures from untrusted rows: where they may lie, how large they may be, what colours they get.

Owns: containment of paths, the limits checked before decoding, and the one rule for RGB. Nothing
is ever downloaded.

Colours: EXIF orientation is applied; transparency is laid over white; 16-bit grey keeps its high
byte; palettes, grey, CMYK and the rest are converted to RGB. Animations are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from narrowtune.data.examples import Image, RowError

MAX_PIXELS = 64_000_000
"""Width times height; a larger picture is refused before it is decoded."""

MAX_FILE_BYTES = 256 * 2**20
"""Of one encoded picture."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def image_reference(value: Any, root: Path | None) -> Image:
    """Read how a row names a picture: a path, a data URI, or `{bytes, path}` as in `datasets`.

    Raises:
        RowError: a web address, or none of these.
    """
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path") or value.get("url")
        value = data if data is not None else path
    if isinstance(value, (bytes, bytearray)):
        return Image(data=bytes(value), root=root)
    if not isinstance(value, str):
        raise RowError(f"a picture is {type(value).__name__}, not a path or bytes")
    if not value.strip():
        raise RowError("a picture's path is empty")
    if value.startswith("data:"):
        _, comma, payload = value.partition(";base64,")
        try:
            return Image(data=base64.b64decode(payload if comma else "-", validate=True), root=root)
        except binascii.Error:
            raise RowError("a picture's data URI is not base64") from None
    if "://" in value:
        raise RowError(f"picture {value[:80]!r} is an address; pictures are never downloaded")
    if "\0" in value:
        raise RowError("a picture's path contains a zero byte")
    return Image(path=Path(value), root=root)


def check_image(image: Image) -> Image:
    """Read and decode `image` once, and return it with its real path and the hash of its bytes.

    Raises:
        RowError: it can't be used; the reason names the picture.
    """
    data, path = _read(image, image.root)
    with _decoding(image):
        picture = _open(data)
        # Entropy decoding finds truncation; a JPEG need not be rebuilt at full size for that.
        picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
        picture.load()
        _mode_check(picture)
    root = image.root.resolve() if image.root is not None else None
    return replace(image, path=path, root=root, sha256=hashlib.sha256(data).hexdigest())


def open_image(image: Image, root: Path | None = None) -> PIL.Image.Image:
    """Return the picture as RGB, size [width, height] as it is to be seen.

    Args:
        image: where it is.
        root: folder that its path must stay under; the picture's own unless given.

    Raises:
        RowError: outside `root`, not a regular file, too large, broken, animated, of an unknown
            kind, or no longer the bytes that `check_image` saw.
    """
    data, _ = _read(image, root if root is not None else image.root)
    if image.sha256 and hashlib.sha256(data).hexdigest() != image.sha256:
        raise RowError(f"{_label(image)} has changed since the rows were read")
    with _decoding(image):
        picture = _open(data)
        picture.load()
        _mode_check(picture)
        return _to_rgb(PIL.ImageOps.exif_transpose(picture))


def _label(image: Image) -> str:
    return (
        f"picture {str(image.name)[-120:]!r}" if image.path is not None else "an embedded picture"
    )


def _read(image: Image, root: Path | None) -> tuple[bytes, Path | None]:
    if image.data is not None:
        if not image.data:
            raise RowError("an embedded picture is empty")
        if len(image.data) > MAX_FILE_BYTES:
            raise RowError(f"an embedded picture has more than {MAX_FILE_BYTES} bytes")
        return image.data, None
    assert image.path is not None
    if root is None:
        raise RowError(f"{_label(image)} is a path, and no folder is set for it (image_root)")
    try:
        folder = root.resolve(strict=True)
        path = (folder / image.path).resolve(strict=True)
    except (OSError, RuntimeError):
        raise RowError(f"{_label(image)} does not exist in {root} (image_root)") from None
    if not path.is_relative_to(folder):
        raise RowError(
            f"{_label(image)} lies outside the folder for pictures, {folder} (set image_root)"
        )
    try:
        # Non-blocking, so that a pipe put in place of a picture can't hold the run.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise RowError(f"{_label(image)} can't be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RowError(f"{_label(image)} is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise RowError(f"{_label(image)} has more than {MAX_FILE_BYTES} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    if not data:
        raise RowError(f"{_label(image)} is empty")
    return data, path


class _decoding:
    """Turn whatever a decoder raises on hostile bytes into a `RowError` that names the picture."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def __enter__(self) -> None:
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        # Pillow warns about sizes that are refused here anyway, and about odd metadata.
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.caught.__exit__(kind, error, trace)
        if isinstance(error, RowError):
            raise RowError(f"{_label(self.image)} {error.reason}") from None
        if isinstance(error, PIL.Image.DecompressionBombError):
            raise RowError(f"{_label(self.image)} has more than {MAX_PIXELS} pixels") from None
        # Decoders answer broken files with almost any exception.
        if isinstance(error, Exception):
            detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise RowError(f"{_label(self.image)} can't be decoded: {detail}") from None


def _open(data: bytes) -> PIL.Image.Image:
    """Read the header only, and check what it announces."""
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise RowError(f"is none of {', '.join(FORMATS)}, or is cut off in its header") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise RowError(f"has more than {MAX_PIXELS} pixels ({picture.width} x {picture.height})")
    # Phones store a preview or depth map behind a JPEG (MPO): its first frame is the picture.
    num_frames = getattr(picture, "n_frames", 1)
    if num_frames > 1 and picture.format != "MPO":
        raise RowError(f"is an animation or has pages ({num_frames} frames)")
    return picture


def _mode_check(picture: PIL.Image.Image) -> None:
    if picture.mode == "F":
        raise RowError("has floating-point colours, whose white is not known")


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise RowError("has more than 16 bits per colour")
        picture = PIL.Image.fromarray((wide >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = PIL.Image.alpha_composite(white, picture)
    return picture.convert("RGB")
