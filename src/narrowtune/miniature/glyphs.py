"""How letters look: five cuts of the font that Pillow brings, and a pen of our own.

Owns: masks of single characters, kept once made. The font is Pillow's own (no font file is read);
the pen is drawn from strokes, so that weight and slant are free. The pen knows capitals only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont


class Face(NamedTuple):
    """A way to write: `weight` of the strokes, `width` and `slant` as factors of the height."""

    name: str
    pen: bool
    weight: float
    width: float = 1.0
    slant: float = 0.0


FACES = (
    Face("plain", False, 0),
    Face("bold", False, 1),
    Face("narrow", False, 1, width=0.85),
    Face("wide", False, 0, width=1.2),
    Face("italic", False, 0, slant=0.2),
    Face("pen", True, 0.13, width=0.62),
    Face("marker", True, 0.2, width=0.68),
    Face("script", True, 0.13, width=0.6, slant=0.22),
)

PRINTED = (FACES[0], FACES[1], FACES[3])
"""Faces that stay legible where letters are smallest."""

# Grid points as pairs of digits, x from 0 to 4 and y from 0 to 6; a space lifts the pen.
_STROKES = {
    "A": "062046 1434",
    "B": "06003041423303 3344453606",
    "C": "4130100105163645",
    "D": "00204145260600",
    "E": "40000646 0333",
    "F": "400006 0333",
    "G": "41301001051636454323",
    "H": "0006 4046 0343",
    "I": "1030 2026 1636",
    "J": "2040 3035261605",
    "K": "0006 4003 1346",
    "L": "000646",
    "M": "0600234046",
    "N": "06004640",
    "O": "103041453616050110",
    "P": "06003041423303",
    "Q": "103041453616050110 2446",
    "R": "06003041423303 2346",
    "S": "413010010213334445361605",
    "T": "0040 2026",
    "U": "000516364540",
    "V": "002640",
    "W": "0016233640",
    "X": "0046 4006",
    "Y": "002340 2326",
    "Z": "00400646",
    "0": "103041453616050110 0541",
    "1": "112026 1636",
    "2": "01103041420646",
    "3": "01103041423313334445361605",
    "4": "300444 3036",
    "5": "400002324345361605",
    "6": "30100105163645443303",
    "7": "004016",
    "8": "13020110304142331304051636454433",
    "9": "16364541301001021343",
    "%": "0640 0010110100 3545463635",
    ":": "2122 2425",
    "-": "1333",
    "?": "01103041422324 2526",
}

_CAP_HEIGHT = 0.72  # of the font's size, measured on its "H"


class Glyph(NamedTuple):
    """A character as drawn.

    Attributes:
        mask: how much ink lies where, 0 to 255.
        left: of the mask, from where the character stands.
        top: of the mask, from the top of a capital.
        advance: from where this character stands to where the next one does.
    """

    mask: Image.Image
    left: int
    top: int
    advance: int


@lru_cache(maxsize=16384)
def glyph(face: Face, height: int, character: str) -> Glyph:
    """Return `character` with capitals `height` pixels high."""
    if face.pen and character != " ":
        strokes = _STROKES.get(character.upper())
        if strokes is not None:
            return _pen(face, height, strokes)
    return _type(face, height, character)


def _type(face: Face, height: int, character: str) -> Glyph:
    font = _font(height)
    # A pen's weight is a share of the height; type is either regular or one stroke heavier.
    weight = max(1, round(height / 16)) if face.weight >= 1 else 0
    advance = round((font.getlength(character) + weight) * (1 if face.pen else face.width))
    left, top, right, bottom = font.getbbox(character, stroke_width=weight, anchor="ls")
    if right <= left or bottom <= top:
        return Glyph(Image.new("L", (1, 1)), 0, 0, advance)
    size = (int(right - left) + 2, int(bottom - top) + 2)
    mask = Image.new("L", size)
    origin = (1 - int(left), 1 - int(top))
    pen = ImageDraw.Draw(mask)
    pen.text(origin, character, fill=255, font=font, stroke_width=weight, anchor="ls")
    if not face.pen and face.width != 1:
        mask = mask.resize((max(1, round(mask.width * face.width)), mask.height))
    return Glyph(_slanted(mask, face.slant), int(left) - 1, height + int(top) - 1, advance)


@lru_cache(maxsize=128)
def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(height / _CAP_HEIGHT)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _pen(face: Face, height: int, strokes: str) -> Glyph:
    weight = max(2, round(height * face.weight))
    width = round(height * face.width)
    margin = weight // 2 + 1
    mask = Image.new("L", (width + 2 * margin, height + 2))
    pen = ImageDraw.Draw(mask)
    for stroke in strokes.split():
        points = [
            (
                margin + int(stroke[i]) * width / 4,
                weight / 2 + int(stroke[i + 1]) * (height - weight) / 6,
            )
            for i in range(0, len(stroke), 2)
        ]
        pen.line(points, fill=255, width=weight, joint="curve")
        for x, y in (points[0], points[-1]):
            half = weight / 2 - 0.5
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    gap = max(2, round(height * 0.14))
    return Glyph(_slanted(mask, face.slant), 0, 0, mask.width + gap)


def _slanted(mask: Image.Image, slant: float) -> Image.Image:
    if not slant:
        return mask
    lean = round(slant * mask.height)
    return mask.transform(
        (mask.width + lean, mask.height),
        Image.Transform.AFFINE,
        (1, slant, -slant * mask.height, 0, 1, 0),
        resample=Image.Resampling.BILINEAR,
    )


def text_width(face: Face, height: int, text: str) -> int:
    """Return how wide `text` is, in pixels."""
    return sum(glyph(face, height, character).advance for character in text)
