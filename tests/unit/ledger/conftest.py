"""Ledgers of skills that nobody was taught."""

from __future__ import annotations

import pytest
import torch

from delta_cases import load
from ledger_lessons import SKILLS, lesson
from narrowtune.core.ledger import Ledger
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint


@pytest.fixture
def taught(tiny, tmp_path):
    """`taught(recipes)` teaches skills in a row; returns base folder, ledger and fingerprints."""

    def make(recipes, dtype=torch.bfloat16):
        folder = tiny("llama", dtype)
        model = load(folder)
        book = Book(
            tmp_path / "ledger",
            Ledger(
                model=str(folder),
                loading={},
                family="llama",
                base_fingerprint=fingerprint(model),
            ),
        )
        states = [fingerprint(model)]
        for seed, (name, recipe) in enumerate(zip(SKILLS, recipes, strict=False)):
            book.add(*lesson(model, tmp_path / f"run-{name}", name, recipe, seed))
            states.append(fingerprint(model))
        return folder, book, states

    return make
