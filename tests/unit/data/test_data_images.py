"""Pictures stay under their root, hostile ones are refused undecoded, colours follow one rule."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from narrowtune.data.examples import Image, RowError
from narrowtune.data.images import check_image, image_reference, open_image


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def _saved(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, png: Callable[..., bytes]) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "good.png").write_bytes(png())
    (tmp_path / "outside.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "inside.png").symlink_to(root / "good.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no picture", encoding="utf-8")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("name", ["good.png", "inside.png", "sub/../good.png", "{root}/good.png"])
def test_a_picture_inside_its_root_opens(name: str, folder: Path) -> None:
    image = image_reference(name.format(root=folder), folder)
    assert open_image(image).size == (20, 12)
    checked = check_image(image)
    assert checked.name == "good.png"
    assert len(checked.sha256) == 64


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.png", "outside the folder"),
        ("sub/../../outside.png", "outside the folder"),
        ("{root}/../outside.png", "outside the folder"),
        ("link.png", "outside the folder"),
        ("/etc/passwd", "outside the folder"),
        ("/proc/self/environ", "outside the folder"),
        ("/dev/zero", "outside the folder"),
        ("loop.png", "does not exist"),
        ("none.png", "does not exist"),
        ("pipe.png", "not a regular file"),
        ("sub", "not a regular file"),
        ("empty.png", "is empty"),
        ("text.png", "none of PNG"),
    ],
)
def test_what_a_path_must_not_reach(name: str, reason: str, folder: Path) -> None:
    image = image_reference(name.format(root=folder), folder)
    for use in (open_image, check_image):
        with pytest.raises(RowError, match=reason):
            use(image)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/a.png", "never downloaded"),
        ("file:///etc/passwd", "never downloaded"),
        ("data:image/png;base64,!!", "not base64"),
        ("data:image/png,abc", "not base64"),
        ("a\0b.png", "zero byte"),
        ({"bytes": None, "path": None}, "NoneType"),
        (3, "int"),
    ],
)
def test_references_that_are_refused(value: object, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        image_reference(value, Path())


def test_the_folder_that_a_missing_picture_is_looked_for_in_is_named(folder: Path) -> None:
    image = image_reference("images/0000.png", folder)
    with pytest.raises(RowError) as error:
        check_image(image)
    assert error.value.reason == (
        f"picture 'images/0000.png' does not exist in {folder} (image_root)"
    )


def test_a_path_needs_a_root() -> None:
    with pytest.raises(RowError, match=r"no folder is set for it \(image_root\)"):
        open_image(Image(path=Path("a.png")))


def test_a_changed_picture_is_noticed(folder: Path, png: Callable[..., bytes]) -> None:
    checked = check_image(image_reference("good.png", folder))
    assert open_image(checked).size == (20, 12)
    (folder / "good.png").write_bytes(png(30, 12))
    with pytest.raises(RowError, match="has changed"):
        open_image(checked)


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (8_001, 8_000)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    for use in (open_image, check_image):
        with pytest.raises(RowError, match="more than 64000000 pixels"):
            use(Image(data=_bomb(*size)))


def test_truncated_pictures_are_refused() -> None:
    noise = PIL.Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    )
    for kind in ("PNG", "JPEG", "WEBP"):
        data = _saved(noise, kind)
        assert open_image(Image(data=data)).size == (64, 64)
        for use in (open_image, check_image):
            with pytest.raises(RowError, match="embedded picture"):
                use(Image(data=data[: len(data) * 2 // 3]))


def test_other_kinds_and_animations_are_refused() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = _saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(RowError, match="2 frames"):
            check_image(Image(data=data))
    with pytest.raises(RowError, match="none of PNG"):
        check_image(Image(data=_saved(frames[0], "ICO")))
    with pytest.raises(RowError, match="floating-point"):
        check_image(Image(data=_saved(PIL.Image.new("F", (4, 4)), "TIFF")))


def test_one_rule_for_colours() -> None:
    def pixel(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> tuple[int, ...]:
        opened = open_image(Image(data=_saved(picture, kind, **options)))
        assert opened.mode == "RGB"
        return opened.getpixel((0, 0))

    assert pixel(PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 0))) == (255, 255, 255)
    assert pixel(PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 127))) == (255, 128, 128)
    assert pixel(PIL.Image.new("LA", (2, 2), (10, 0))) == (255, 255, 255)
    assert pixel(PIL.Image.new("L", (2, 2), 77)) == (77, 77, 77)
    assert pixel(PIL.Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert pixel(PIL.Image.new("P", (2, 2), 0), transparency=0) == (255, 255, 255)
    assert pixel(PIL.Image.fromarray(np.full((2, 2), 0x4D80, np.uint16))) == (77, 77, 77)
    assert pixel(PIL.Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "TIFF") == (255, 255, 255)
    assert pixel(PIL.Image.new("RGB", (1, 1), "red")) == (255, 0, 0)


def test_exif_orientation_is_applied() -> None:
    picture = PIL.Image.new("RGB", (20, 10), "red")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert open_image(Image(data=_saved(picture, "JPEG", exif=exif))).size == (10, 20)
