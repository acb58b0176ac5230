"""Where scenes are drawn: a picture at twice its size, and beside it what stands where.

Owns: `SIZE`, the drawing of primitives, and the planes of marks that patch labels are read from.
Coordinates are pixels of the finished picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from narrowtune.miniature.glyphs import FACES, Face, glyph, text_width
from narrowtune.miniature.marks import CHARACTERS, mark, word_marks
from narrowtune.miniature.palette import Ink

SIZE = 112
"""Width and height of every picture, in pixels.

7 patches of 16, 14 of 8 or 8 of 14 (Qwen2.5-VL's), so that a tower of a few hundred thousand
parameters sees 49 to 196 patches; a line holds sixteen letters or more of the smallest legible
height, 6.
"""

_FINE = 2
"""Canvas pixels per picture pixel: edges are smoothed by halving the canvas once."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


class Canvas:
    """A picture in the making.

    Every primitive takes what it is a part of (`what`, a name in `marks.WHAT`); None draws without
    leaving a mark, for what only decorates.
    """

    def __init__(self, ground: Ink) -> None:
        self.ground = ground
        self.image = Image.new("RGB", (SIZE * _FINE, SIZE * _FINE), ground.rgb)
        self.marks = Image.new("I", (SIZE, SIZE), mark("nothing", ground.name))
        self._pen = ImageDraw.Draw(self.image)
        self.words = Image.new("I", (SIZE, SIZE), 0)
        self._marker = ImageDraw.Draw(self.marks)
        self._worder = ImageDraw.Draw(self.words)

    def polygon(
        self, points: Sequence[Point], ink: Ink, what: str | None, *, edge: Ink | None = None
    ) -> None:
        """Fill a polygon; `edge` draws its outline."""
        fine = [(x * _FINE, y * _FINE) for x, y in points]
        self._pen.polygon(fine, fill=ink.rgb)
        if edge is not None:
            self._pen.line([*fine, fine[0]], fill=edge.rgb, width=_FINE)
        if what is not None:
            self._marker.polygon(list(points), fill=mark(what, ink.name))

    def rectangle(self, box: Box, ink: Ink, what: str | None, *, edge: Ink | None = None) -> None:
        """Fill a rectangle."""
        outline = None if edge is None else edge.rgb
        self._pen.rectangle(_scaled(box), fill=ink.rgb, outline=outline, width=_FINE)
        if what is not None:
            self._marker.rectangle(_inner(box), fill=mark(what, ink.name))

    def rounded(
        self, box: Box, radius: float, ink: Ink, what: str | None, *, edge: Ink | None = None
    ) -> None:
        """Fill a rectangle with round corners."""
        outline = None if edge is None else edge.rgb
        self._pen.rounded_rectangle(
            _scaled(box), radius * _FINE, fill=ink.rgb, outline=outline, width=_FINE
        )
        if what is not None:
            self._marker.rectangle(_inner(box), fill=mark(what, ink.name))

    def ellipse(self, box: Box, ink: Ink, what: str | None, *, edge: Ink | None = None) -> None:
        """Fill an ellipse."""
        outline = None if edge is None else edge.rgb
        self._pen.ellipse(_scaled(box), fill=ink.rgb, outline=outline, width=_FINE)
        if what is not None:
            self._marker.ellipse(_inner(box), fill=mark(what, ink.name))

    def loop(self, box: Box, ink: Ink, what: str | None, width: float) -> None:
        """Draw the outline of an ellipse, `width` pixels wide."""
        self._pen.ellipse(_scaled(box), outline=ink.rgb, width=round(width * _FINE))
        if what is not None:
            value = mark(what, ink.name)
            self._marker.ellipse(_inner(box), outline=value, width=max(1, round(width)))

    def line(self, points: Sequence[Point], ink: Ink, what: str | None, width: float) -> None:
        """Draw connected lines, `width` pixels wide."""
        fine = [(x * _FINE, y * _FINE) for x, y in points]
        self._pen.line(fine, fill=ink.rgb, width=max(1, round(width * _FINE)), joint="curve")
        if what is not None:
            value = mark(what, ink.name)
            self._marker.line(list(points), fill=value, width=max(1, round(width)))

    def arc(self, box: Box, start: float, end: float, ink: Ink, width: float) -> None:
        """Draw a part of an ellipse's outline, which leaves no mark; angles in degrees."""
        self._pen.arc(_scaled(box), start, end, fill=ink.rgb, width=max(1, round(width * _FINE)))

    def text(
        self,
        centre: Point,
        text: str,
        ink: Ink,
        height: float,
        *,
        face: Face = FACES[0],
        angle: float = 0.0,
    ) -> None:
        """Write `text` around `centre`, its capitals `height` pixels high.

        Args:
            centre: of the line of text.
            text: letters and digits leave marks, other characters don't.
            ink: of the letters.
            height: of a capital.
            face: one of `glyphs.FACES`.
            angle: degrees, counter-clockwise.
        """
        fine = round(height * _FINE)
        glyphs = [glyph(face, fine, character) for character in text]
        width = sum(item.advance for item in glyphs)
        x, y = centre[0] * _FINE - width / 2, centre[1] * _FINE - fine / 2
        if angle:
            self._turned(centre, text, ink, fine, face, angle)
            return
        for character, word, item in zip(text, word_marks(text), glyphs, strict=True):
            self.image.paste(ink.rgb, (round(x) + item.left, round(y) + item.top), item.mask)
            corner = (x / _FINE, y / _FINE)
            self._mark_character(character, word, ink, corner, item.mask.width, fine)
            x += item.advance

    def _turned(
        self, centre: Point, text: str, ink: Ink, height: int, face: Face, angle: float
    ) -> None:
        width = text_width(face, height, text)
        line = Image.new("L", (width + height, 2 * height))
        x = height // 2
        stands = []
        for character in text:
            item = glyph(face, height, character)
            line.paste(255, (x + item.left, height // 2 + item.top), item.mask)
            stands.append((character, x - height // 2, item.mask.width))
            x += item.advance
        line = line.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        fine = (round(centre[0] * _FINE - line.width / 2), round(centre[1] * _FINE))
        self.image.paste(ink.rgb, (fine[0], fine[1] - line.height // 2), line)
        # Turns are small, so that an upright box shifted along the line covers the letter.
        for (character, offset, glyph_width), word in zip(stands, word_marks(text), strict=True):
            along = (offset - width / 2) / _FINE
            corner = (
                centre[0] + along,
                centre[1] - height / 2 / _FINE - (along + glyph_width / 4) * angle * 0.01745,
            )
            self._mark_character(character, word, ink, corner, glyph_width, height)

    def _mark_character(
        self, character: str, word: int, ink: Ink, corner: Point, width: int, height: int
    ) -> None:
        if character.lower() in CHARACTERS:
            x, y = corner
            box = (x, y, x + width / _FINE - 1, y + height / _FINE - 1)
            self._marker.rectangle(box, fill=mark(character.lower(), ink.name))
            self._worder.rectangle(box, fill=word)

    def finished(self) -> Image.Image:
        """Return the picture at its size."""
        return self.image.reduce(_FINE)


def fitting_height(face: Face, text: str, width: float, tallest: float, lowest: float) -> float:
    """Return the largest height, in half pixels, at which `text` is at most `width` wide.

    `lowest` is returned where none is: a text that is too wide is better than one too small.
    """
    height = tallest
    while height > lowest and text_width(face, round(height * _FINE), text) > width * _FINE:
        height -= 0.5
    return max(height, lowest)


def around(centre: Point, width: float, height: float | None = None) -> Box:
    """Return the box of this size around `centre`."""
    x, y = centre
    height = width if height is None else height
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _scaled(box: Iterable[float]) -> tuple[float, ...]:
    return tuple(value * _FINE for value in box)


def _inner(box: Box) -> Box:
    """The same box for Pillow, which counts the last row and column in."""
    left, top, right, bottom = box
    return left, top, max(left, right - 1), max(top, bottom - 1)
