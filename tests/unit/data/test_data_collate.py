"""A batch gives every row the logits that it has alone, and pads nothing into the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import IGNORE_INDEX, Encoded, check_pictures, collate
from narrowtune.data.examples import Image, Message, Text
from narrowtune.models.load import LoadedModel
from tiny_models import FAMILIES, VISION_FAMILIES

SIZES = [[(40, 30)], [(28, 90)], [], [(60, 20), (20, 60)], [(90, 90)]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows(
    family: str, side: str, loaded: Callable[[str], LoadedModel], png: Callable[..., bytes]
) -> None:
    model = loaded(family)
    encoder = ChatEncoder(model.tokenizer, model.processor)
    rows = []
    for number, sizes in enumerate(SIZES):
        pictures = [Image(data=png(*size, (50 * number, 10, 200))) for size in sizes]
        shown = pictures if family in VISION_FAMILIES else []
        turn = Message("user", (*shown, Text("What is it? " * (number + 1))))
        rows.append(encoder.encode_answer([turn], "red " * (len(SIZES) - number)))
    pad = model.tokenizer.pad_token_id
    batch = collate(rows, 0 if pad is None else pad, padding_side=side)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    labels = batch.pop("labels")
    with torch.no_grad():
        together = _logits(model, batch, side)
        for index, row in enumerate(rows):
            alone = collate([row], 0)
            alone.pop("labels")
            single = _logits(model, alone, "right")[0]
            mask = batch["attention_mask"][index].bool()
            assert labels[index][mask].tolist() == row.labels
            assert (labels[index][~mask] == IGNORE_INDEX).all()
            torch.testing.assert_close(together[index][mask], single, atol=1e-5, rtol=1e-5)


def _logits(model: LoadedModel, batch: dict[str, torch.Tensor], side: str) -> torch.Tensor:
    # Qwen2.5-VL numbers positions itself where there are pictures; the others count from 0 unless
    # told, also with padding on the left.
    if side == "left" and "image_grid_thw" not in batch:
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return model.model(**batch, position_ids=positions).logits
    return model.model(**batch).logits


def test_padding_on_either_side() -> None:
    rows = [Encoded([5, 6, 7], [IGNORE_INDEX, 6, 7]), Encoded([8], [8])]
    right, left = collate(rows, 1), collate(rows, 1, padding_side="left")
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert left["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]


def test_tokens_appended_to_a_row_are_text() -> None:
    kinds = torch.tensor([0, 1, 1])
    rows = [Encoded([1, 2, 2, 3, 4], [-100] * 5, {"mm_token_type_ids": kinds}), Encoded([1], [1])]
    assert collate(rows, 0, padding_side="left")["mm_token_type_ids"].tolist() == [
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_pictures_are_joined_in_order() -> None:
    def row(tiles: int, value: float) -> Encoded:
        pixels = torch.full((1, tiles, 3, 2, 2), value)
        return Encoded(
            [1], [1], {"pixel_values": pixels, "image_sizes": torch.tensor([[tiles, 2]])}
        )

    batch = collate([row(1, 1.0), Encoded([1], [1]), row(3, 2.0)], 0)
    assert batch["pixel_values"].shape == (2, 3, 3, 2, 2)
    assert batch["pixel_values"].sum((2, 3, 4)).tolist() == [[12, 0, 0], [24, 24, 24]]
    assert batch["image_sizes"].tolist() == [[1, 2], [3, 2]]
    flat = [Encoded([1], [1], {"pixel_values": torch.zeros(1, 3, n, n)}) for n in (2, 3)]
    with pytest.raises(DataError, match="can't be joined"):
        collate(flat, 0)


def test_pictures_of_all_rows_are_checked_without_joining_them():
    def row(*shape):
        return Encoded([1], [1], {"pixel_values": torch.zeros(shape)})

    # Tiles differ in number, rows without pictures don't matter.
    check_pictures([row(1, 2, 3, 4, 4), Encoded([1], [1]), row(1, 5, 3, 4, 4)])
    check_pictures([row(1, 3, 4, 4), row(2, 3, 4, 4)])
    with pytest.raises(DataError, match=r"can't be joined: \[3, 4, 4\], \[3, 4, 6\]\n"):
        check_pictures([row(1, 3, 4, 4)] * 300 + [row(1, 3, 4, 6)])
