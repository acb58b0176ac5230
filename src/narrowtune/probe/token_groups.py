"""Groups of vocabulary tokens whose probability shows what a model leans towards.

Owns: which tokens count as numbers, yes or no, option letters, or a skill's own answers; and which
first tokens begin answers of one form.

The numbers are those of the number-token bias in "How to Teach Large Multimodal Models New
Skills" (arXiv 2510.08564): ASCII digits, ordinals, decimals with one dot, thousands with one
comma, and number words in any case, with or without a leading space. (The paper's script lowers
the case before it strips byte-level BPE's space mark "Ġ" and so misses " one" there; here the
definition holds for every tokenizer.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_NUMERAL = re.compile(r"[0-9]+|[0-9]+(?:st|nd|rd|th)|[0-9]+\.[0-9]+|[0-9]+,[0-9]+")
_NUMBER_WORD = re.compile(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    "|hundred|thousand|million|billion"
)
_SPACE_MARKS = " ▁Ġ\t\n\r"


@dataclass(frozen=True)
class TokenGroup:
    """Some entries of the vocabulary, under a name. `ids` are sorted and without repetition."""

    name: str
    ids: tuple[int, ...]


def is_number(token: str) -> bool:
    """Whether a vocabulary entry (with its space mark, if any) is a number as the paper has it."""
    text = token.strip(_SPACE_MARKS).lower()
    return bool(_NUMERAL.fullmatch(text) or _NUMBER_WORD.fullmatch(text))


def is_yes_no(token: str) -> bool:
    """Whether a vocabulary entry is "yes" or "no" in any case."""
    return token.strip(_SPACE_MARKS).lower() in {"yes", "no"}


def is_option_letter(token: str) -> bool:
    """Whether a vocabulary entry is one capital letter from A to H."""
    return re.fullmatch("[A-H]", token.strip(_SPACE_MARKS)) is not None


def is_article(token: str) -> bool:
    """Whether a vocabulary entry is a capital "A": an option's letter, and how sentences begin."""
    return token.strip(_SPACE_MARKS) == "A"


def group_of(
    name: str, tokenizer: PreTrainedTokenizerBase, belongs: Callable[[str], bool]
) -> TokenGroup:
    """Return the group of all vocabulary entries for which `belongs` holds."""
    ids = {index for token, index in tokenizer.get_vocab().items() if belongs(token)}
    return TokenGroup(name, tuple(sorted(ids)))


def standard_groups(tokenizer: PreTrainedTokenizerBase) -> list[TokenGroup]:
    """Return `numbers`, `yes_no` and `option_letters`, without those the vocabulary lacks."""
    rules = {"numbers": is_number, "yes_no": is_yes_no, "option_letters": is_option_letter}
    groups = [group_of(name, tokenizer, rule) for name, rule in rules.items()]
    return [group for group in groups if group.ids]


def answer_group(
    name: str, answers: Iterable[Iterable[int]], leave_out: Collection[int]
) -> TokenGroup:
    """Return the group of the tokens that occur in a skill's answers.

    Args:
        name: of the group.
        answers: token ids of each answer, as they stand after the prompt.
        leave_out: tokens that belong to every answer, such as the end of the turn.
    """
    ids = {token for answer in answers for token in answer} - set(leave_out)
    return TokenGroup(name, tuple(sorted(ids)))


class Forms:
    """The form of an answer, as its first token tells it.

    There are five: a number, yes or no, an option's letter (the `standard_groups`), the end (the
    answer is empty), and any other word. A capital "A" is a letter and a word.

    Args:
        tokenizer: of the model.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> None:
        named = [*standard_groups(tokenizer), TokenGroup("end", tuple(ends))]
        articles = group_of("words", tokenizer, is_article)
        self._names: dict[int, set[str]] = {}
        for group in (*named, articles):
            for token in group.ids:
                self._names.setdefault(token, set()).add(group.name)

    def alike(self, token: int, other: int) -> bool:
        """Whether two first tokens begin answers of one form."""
        words = {"words"}
        return not self._names.get(token, words).isdisjoint(self._names.get(other, words))


class GroupMass:
    """Measures groups on a step's logits; fits `collect` of `generate_greedy`."""

    def __init__(self, groups: Iterable[TokenGroup]) -> None:
        self.groups = list(groups)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return [B, 2 · groups]: of each group the largest probability and the sum.

        Args:
            logits: [B, V], raw.
        """
        probabilities_BV = torch.softmax(logits.float(), dim=-1)
        columns = []
        for group in self.groups:
            index = torch.tensor(group.ids, device=logits.device)
            chosen = probabilities_BV.index_select(-1, index)
            columns += [chosen.amax(dim=-1), chosen.sum(dim=-1)]
        if not columns:
            return logits.new_zeros(logits.shape[0], 0, dtype=torch.float32)
        return torch.stack(columns, dim=-1)
