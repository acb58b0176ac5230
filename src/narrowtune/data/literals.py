"""Special tokens that someone typed are text.

Owns: which strings a tokenizer takes for special tokens, and keeping it from doing so in what
users and assistants wrote. A private-use character is put after such a string's first character
before tokenising, and its tokens are taken out afterwards, so the rest is plain text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from narrowtune.data.examples import RowError

_GUARDS = "\ue8f0\ue8f1\ue8f2\ue8f3"


class SpecialTokens:
    """The special tokens of a tokenizer, with the picture placeholders of a processor.

    Attributes:
        placeholders: ids that stand for pictures, videos or sound.
        image_id: id of the picture placeholder; None without a processor.
    """

    def __init__(self, tokenizer: Any, processor: Any = None) -> None:
        names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        media = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        media = [name for name in media if isinstance(name, str)]
        self.names = sorted({*names, *tokenizer.all_special_tokens, *media}, key=len, reverse=True)
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in self.names}
        # What the tokenizer can't spell becomes its unknown token: no one wrote that.
        self._counted = {i for i in ids.values() if i is not None and i != tokenizer.unk_token_id}
        unspelt = (None, tokenizer.unk_token_id)
        self.placeholders = {ids[name] for name in media if ids[name] not in unspelt}
        self.image_id: int | None = ids[media[0]] if media else None
        starts = [name for name in self.names if ids[name] not in self.placeholders]
        if tokenizer.bos_token != tokenizer.eos_token:
            starts = [name for name in starts if name != tokenizer.bos_token]
        self._end = re.compile(r"\s*" + _any_of(starts))
        self._ending = re.compile(rf"(?:\s*{_any_of(starts)})*\s*\Z")
        self._found = re.compile(f"(?={_any_of(self.names)})")

    def count(self, ids: Iterable[int]) -> Counter[int]:
        """Return how often each special token occurs in `ids` (the unknown token is not one)."""
        return Counter(i for i in ids if i in self._counted)

    def end_of_turn(self, text: str) -> int | None:
        """Return where the special token at the start of `text` ends; None if there is none.

        White space may come before it. Placeholders and the begin-of-text token end no turn.
        """
        found = self._end.match(text)
        return found.end() if found else None

    def ending(self, text: str) -> int:
        """Return where the white space and special tokens that `text` ends with begin."""
        found = self._ending.search(text)
        assert found is not None, "the empty ending always matches"
        return found.start()

    def guard_for(self, texts: Sequence[str]) -> str | None:
        """Return a character to guard `texts` with; None if they spell no special token.

        Raises:
            RowError: a special token is a single character, or all guards occur in the texts.
        """
        found = {match for text in texts for match in self._found.findall(text)}
        if not found:
            return None
        if min(map(len, found)) < 2:
            raise RowError(f"the text contains the special token {min(found, key=len)!r}")
        free = [guard for guard in _GUARDS if not any(guard in text for text in texts)]
        if not free:
            raise RowError("the text contains special tokens and private-use characters")
        return free[0]

    def protect(self, text: str, guard: str | None) -> str:
        """Return `text` with `guard` after the first character of every special token."""
        if guard is None:
            return text
        cuts = [match.start() + 1 for match in self._found.finditer(text)]
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return guard.join(pieces)


def _any_of(names: Sequence[str]) -> str:
    """A group that matches one of `names`, longest first; nothing where there are none."""
    return "(" + ("|".join(re.escape(name) for name in names) or r"(?!)") + ")"


def guard_tokens(
    text: str, guard: str | None, offsets: Sequence[tuple[int, int]]
) -> frozenset[int]:
    """Return the positions of the tokens that spell guards.

    Raises:
        RowError: the tokenizer merged a guard with its neighbour.
    """
    if guard is None:
        return frozenset()
    places = {index for index, character in enumerate(text) if character == guard}
    found = set()
    for position, (start, end) in enumerate(offsets):
        if not places.intersection(range(start, end)):
            continue
        if end - start != 1:
            raise RowError("the text spells a special token that can't be split into plain text")
        found.add(position)
    return frozenset(found)
