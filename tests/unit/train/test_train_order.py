"""Rows about one picture are learned from together, and share it without changing the step."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from narrowtune.core.config import RunConfig
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.fit import fit
from narrowtune.train.order import PictureSampler, num_pictures
from narrowtune.train.workload import Batches, Workload


def pictured(number: int) -> Encoded:
    return Encoded([1, 2], [-100, 2], {"pixel_values": torch.full((1, 3, 2, 2), float(number))})


def test_every_row_comes_once_and_those_about_one_picture_together():
    rows = [pictured(number % 4) for number in range(12)] + [Encoded([1, 2], [-100, 2])] * 2
    assert num_pictures(rows) == 4 + 2
    sampler = PictureSampler(rows, seed=3)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == 14
    for order in (first, second):
        assert sorted(order) == list(range(14))
        pictures = [number % 4 for number in order if number < 12]
        assert all(len(set(pictures[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert first != second
    again = PictureSampler(rows, seed=3)
    assert [list(again), list(again)] == [first, second]
    assert list(PictureSampler(rows, seed=4)) != first


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_steps_are_those_of_the_plain_path_with_fewer_looks(tiny, family, tmp_path):
    tuned, looks = [], []
    for packing in (False, True):
        loaded = load_model(str(tiny(family)), device="cpu")
        encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
        rows = []
        for colour in ("red", "blue", "green", "white"):
            buffer = io.BytesIO()
            PIL.Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
            for question, answer in (
                ("what?", "red"),
                ("how many are here?", "two"),
                ("who?", "I"),
            ):
                ask = Message("user", (Image(data=buffer.getvalue()), Text(question)))
                rows.append(encoder.encode_answer([ask], answer))
        training = {"learning_rate": 1e-3, "global_batch_size": 6, "packing": packing}
        training |= {"per_device_train_batch_size": 6, "group_by_picture": True}
        config = RunConfig.model_validate(
            {"model": "m", "skill": "s", "output_dir": str(tmp_path), "training": training}
        )
        seen = []
        tower = loaded.model.get_submodule(loaded.family.vision_tower[0])
        tower.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(
                (args or [*kwargs.values()])[0].shape[0]
            ),
            with_kwargs=True,
        )
        arithmetic = Arithmetic(compute_dtype="float32", threads=1, packing=packing)
        selection = resolve(loaded.model, "sa_proj")
        with apply_arithmetic(arithmetic):
            fitted = fit(loaded, selection, rows, config, arithmetic=arithmetic)
        assert fitted.summary.num_steps == 2
        assert fitted.summary.num_samples == 12
        tuned.append({n: loaded.model.get_parameter(n).detach() for n in selection.names})
        looks.append(sum(seen))
        base = fitted.base
    assert looks[1] * 3 == looks[0]
    for name, weight in tuned[0].items():
        moved = (weight - base[name]).norm()
        assert moved > 0
        assert (tuned[1][name] - weight).norm() < 1e-3 * moved, name


def test_a_plan_counts_what_rows_about_one_picture_share(tiny):
    loaded = load_model(str(tiny("llava")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = []
    for colour in ("red", "blue", "green"):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
        for question in ("what?", "which one?", "who?", "how many?"):
            ask = Message("user", (Image(data=buffer.getvalue()), Text(question)))
            rows.append(encoder.encode_answer([ask], "red"))
    rows = [rows[number] for number in (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)]
    found = {}
    for grouped in (False, True):
        training = {"global_batch_size": 4, "per_device_train_batch_size": 4}
        config = RunConfig.model_validate(
            {"model": "m", "skill": "s", "training": {**training, "group_by_picture": grouped}}
        )
        batches = Batches(loaded, config, Workload(rows=rows, num_samples=12), 1)
        found[grouped] = batches.positions()
    # The picture is four tokens of some twenty here.
    assert found[True] < 0.95 * found[False]
