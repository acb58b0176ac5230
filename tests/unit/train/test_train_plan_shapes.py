"""A plan needs a model's shapes, not its weights: it is the same without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForImageTextToText

from narrowtune.core.config import parse_config
from narrowtune.data.collate import Encoded
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.models.load import load_model
from narrowtune.train.plan import make_plan
from narrowtune.train.workload import Workload


def rows_for(config, count=8):
    """Rows of unlike length, every two of them with the same picture of 6 x 6 visual tokens."""
    rows = []
    for number in range(count):
        picture = [config.image_token_id] * 36
        ids = [config.vision_start_token_id, *picture, config.vision_end_token_id]
        ids += [5 + (3 * number + place) % 40 for place in range(8 + number)]
        patch = config.vision_config.patch_size
        width = 3 * config.vision_config.temporal_patch_size * patch**2
        features = {
            "pixel_values": torch.full((144, width), float(number // 2)),
            "image_grid_thw": torch.tensor([[1, 12, 12]]),
            "mm_token_type_ids": torch.tensor([int(i == config.image_token_id) for i in ids]),
        }
        rows.append(Encoded(ids, [-100] * (len(ids) - 3) + ids[-3:], features))
    return rows


@pytest.mark.parametrize("checkpointed", [False, True])
def test_shapes_without_weights_give_the_same_plan(checkpointed, tiny, tmp_path):
    folder = str(tiny("qwen2_5_vl", torch.bfloat16))
    loaded = load_model(folder, device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = AutoModelForImageTextToText.from_config(
            loaded.model.config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    shapes.tie_weights()
    assert all(isinstance(parameter, FakeTensor) for parameter in shapes.parameters())
    training = {
        "global_batch_size": 4,
        "per_device_train_batch_size": 4,
        "group_by_picture": True,
        "gradient_checkpointing": checkpointed,
    }
    values = {"model": "m", "skill": "s.json", "output_dir": str(tmp_path), "training": training}
    config = parse_config({**values, "recipe": "sa_proj"}, "test")
    rows = rows_for(loaded.model.config)
    plans = [
        make_plan(
            each,
            config,
            Workload(rows=rows, num_samples=len(rows)),
            arithmetic=Arithmetic(compute_dtype="bfloat16", threads=1),
            measure_time=False,
            device="cuda",
        )
        for each in (loaded, replace(loaded, model=shapes.eval()))
    ]
    assert plans[0] == plans[1]
    assert plans[0].sharing is not None
    assert plans[0].memory.activations > 0
    # Of a GPU: the base's copy and the process itself are elsewhere.
    assert plans[0].memory.workspace == 0
