"""Rows about one picture are learned from together, and share it without changing the step."""

from __future__ import annotations

import io
import shutil

import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from narrowtune.core.config import RunConfig
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded
from narrowtune.data.examples import Image, Message, Text
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve
from narrowtune.train.fit import fit
from narrowtune.train.order import PictureSampler
from narrowtune.train.workload import Batches, Workload


def pictured(number: int) -> Encoded:
    return Encoded([1, 2], [-100, 2], {"pixel_values": torch.full((1, 3, 2, 2), float(number))})


def test_every_row_comes_once_and_those_about_one_picture_together():
    rows = [pictured(number % 4) for number in range(12)] + [Encoded([1, 2], [-100, 2])] * 2
    sampler = PictureSampler(rows, seed=3)
    assert len(sampler.groups) == 4 + 2
    first = list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert len(sampler) == 14
    for order in (first, second):
        assert sorted(order) == list(range(14))
        pictures = [number % 4 for number in order if number < 12]
        assert all(len(set(pictures[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert first != second
    again = PictureSampler(rows, seed=3)
    assert list(again) == list(again) == first
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
    # Before its two steps it compares the first: one more by each path.
    compared = looks[0] // 2 + looks[0] // 6
    assert (looks[1] - compared) * 3 == looks[0]
    for name, weight in tuned[0].items():
        moved = (weight - base[name]).norm()
        assert moved > 0
        assert (tuned[1][name] - weight).norm() < 1e-3 * moved, name


def test_processes_that_prepare_batches_change_nothing(tiny, tmp_path, monkeypatch):
    rows = [Encoded([5 + n, 6, 7, 8 + n], [-100, -100, 7, 8 + n]) for n in range(6)]
    tuned, numbers = [], []
    start = DataLoader.__init__

    def noted(self, *args, **kwargs):
        numbers.append(kwargs.get("num_workers"))
        start(self, *args, **kwargs)

    monkeypatch.setattr(DataLoader, "__init__", noted)
    for number in (0, 2):
        loaded = load_model(str(tiny("llama")), device="cpu")
        training = {"learning_rate": 1e-3, "global_batch_size": 3, "dataloader_num_workers": number}
        training["per_device_train_batch_size"] = 3
        config = RunConfig.model_validate(
            {"model": "m", "skill": "s", "output_dir": str(tmp_path), "training": training}
        )
        selection = resolve(loaded.model, "sa_proj")
        arithmetic = Arithmetic(compute_dtype="float32", threads=1)
        with apply_arithmetic(arithmetic):
            fit(loaded, selection, rows, config, arithmetic=arithmetic)
        tuned.append([loaded.model.get_parameter(n).detach() for n in selection.names])
    assert {0, 2} <= set(numbers)
    for alone, beside in zip(*tuned, strict=True):
        assert torch.equal(alone, beside)


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


def test_a_run_resumed_in_its_second_epoch_learns_from_the_same_rows(tiny, tmp_path):
    rows = []
    loaded = load_model(str(tiny("llava")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    for shade in range(6):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (60, 40), (40 * shade, 0, 0)).save(buffer, "PNG")
        for question in ("what?", "who?"):
            ask = Message("user", (Image(data=buffer.getvalue()), Text(question)))
            rows.append(encoder.encode_answer([ask], "red"))
    training = {"learning_rate": 1e-2, "global_batch_size": 4, "group_by_picture": True}
    training |= {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_steps": 1}
    training |= {"save_total_limit": 9, "lr_scheduler_type": "constant"}

    def tuned(folder, resume=False):
        fresh = load_model(str(tiny("llava")), device="cpu")
        config = RunConfig.model_validate(
            {"model": "m", "skill": "s", "output_dir": str(folder), "training": training}
        )
        selection = resolve(fresh.model, "sa_proj")
        fitted = fit(
            fresh,
            selection,
            rows,
            config,
            arithmetic=Arithmetic(compute_dtype="float32", threads=1),
            resume=resume,
        )
        assert fitted.summary.num_steps == 6
        return {n: fresh.model.get_parameter(n).detach() for n in selection.names}

    whole = tuned(tmp_path / "whole")
    # Stopped after the fourth step: the first of the second epoch's three.
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "stopped" / "checkpoint-4")
    resumed = tuned(tmp_path / "stopped", resume=True)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
