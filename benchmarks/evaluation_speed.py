"""Evaluation speed beside lm-evaluation-harness and a loop of one item at a time.

    pip install lm-eval
    python benchmarks/evaluation_speed.py      # a quarter of an hour on two cores

SmolLM2-135M, the demo's kept kinds: choices between two endings by likelihood (`sense`), and
answers of 20 tokens at most (`capitals`, `opposites`). The same tokens are asked, and an option
counts with its end of turn. lm-evaluation-harness runs on its `hf` backend, once at its best here
(batches of 32 for choices and 256 for answers, this machine's fastest fp32) and once at its
defaults (batches of 1, in the dtype of the checkpoint); its requests are made before the clock
starts, so that its reading and scoring is not timed, while narrowtune's is. The loop asks
`generate` one prompt after the other, as adapters of lmms-eval do. Every arm warms up on a few
items first. narrowtune and the harness at its best take turns at going first; what is many times
slower is measured once. narrowtune measures the noise of its arithmetic once for all kinds that are
decoded, as `narrowtune evaluate` does; the first of them pays for it. Answers are compared with
ours.

Results: benchmarks/results/evaluation_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from narrowtune.core import provenance
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.data.rows import read_rows
from narrowtune.demo.files import write_demo_data
from narrowtune.demo.weights import smollm2_folder
from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic, torch_settings
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.tasks import Task, make_task
from narrowtune.models.load import load_model
from narrowtune.pipeline.stages import measure_tolerance

RESULTS = Path(__file__).parent / "results" / "evaluation_speed.json"
KINDS = ("sense", "capitals", "opposites")
ITEMS, ROUNDS, BATCH, WARM_UP = 150, 3, 256, 4
HARNESS_BATCH = {"generate": 256, "options": 32}
"""By mode, where the harness is fastest: over whole vocabularies it is slower with more rows."""
END = "<|im_end|>"


class Bench:
    """The model in narrowtune and in lm-evaluation-harness, and the items."""

    def __init__(self, num_items: int) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM

        folder = str(smollm2_folder())
        self.loaded = load_model(folder, dtype="float32")
        self.tokenizer = self.loaded.tokenizer
        self.encoder = ChatEncoder(self.tokenizer)
        self.arithmetic = measure_arithmetic(self.loaded.model, requested="float32")
        with tempfile.TemporaryDirectory() as data:
            written = write_demo_data(
                Path(data), skill="counting", kinds=KINDS, keep_items=num_items, seed=0
            )
            self.tasks = [
                make_task(settings, read_rows(settings).examples, "held_out")
                for settings in written.keep
            ]
        shared = {"tokenizer": self.tokenizer, "device": "cpu"}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.best = HFLM(pretrained=model, batch_size=1, **shared)
        self.tolerance: float | None = None
        self.default = HFLM(pretrained=folder, **shared)

    def requests(self, task: Task) -> list[Any]:
        """Return what lm-evaluation-harness is asked, as it takes it: tokens, or text to go on."""
        from lm_eval.api.instance import Instance

        made: list[Any] = []
        for number, example in enumerate(task.examples):
            prompt = self.encoder.encode_prompt(example.prompt).input_ids
            text = self.tokenizer.decode(prompt)
            assert self.tokenizer(text, add_special_tokens=False).input_ids == prompt
            if task.mode == "options":
                for option in example.options:
                    whole = self.encoder.encode_answer(example.prompt, option)
                    own = [token for token in whole.labels if token != IGNORE_INDEX]
                    made.append(((text, option), whole.input_ids[: len(prompt)], own))
                    assert whole.input_ids[: len(prompt) + len(own)] == prompt + own
                continue
            until = {"until": [END], "max_gen_toks": task.max_new_tokens, "do_sample": False}
            metadata = (task.name, number, 1)
            made.append(Instance("generate_until", {}, (text, until), 0, metadata))
        return made

    def ours(self, task: Task) -> list[str]:
        """Answer by narrowtune."""
        with apply_arithmetic(self.arithmetic):
            if task.mode != "options" and self.tolerance is None:
                asked = [task for task in self.tasks if task.mode != "options"]
                self.tolerance = measure_tolerance(self.loaded, asked, self.encoder)
            found = evaluate(
                self.loaded, task, self.encoder, batch_size=BATCH, tolerance=self.tolerance
            )
        return [item.answer for item in found.items]

    def harness(self, task: Task, lm: Any, requests: list[Any], *, best: bool) -> list[str]:
        """Answer by lm-evaluation-harness."""
        if best:
            lm.batch_size_per_gpu = HARNESS_BATCH[task.mode]
        with self.torchs_own() if best else nullcontext():
            if task.mode != "options":
                found = lm.generate_until(requests, disable_tqdm=True)
                return [answer.strip() for answer in found]
            found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        answers, start = [], 0
        for example in task.examples:
            sums = [total for total, _ in found[start : start + len(example.options)]]
            answers.append(example.options[sums.index(max(sums))])
            start += len(example.options)
        return answers

    def torchs_own(self) -> AbstractContextManager[None]:
        """Return the arithmetic as a user of torch alone has it."""
        return torch_settings(self.arithmetic.float32_matmul_precision, self.arithmetic.threads)

    def loop(self, task: Task) -> list[str]:
        """Answer one item at a time by `generate`; options are not decoded, so there are none."""
        answers = []
        for example in task.examples:
            ids = torch.tensor([self.encoder.encode_prompt(example.prompt).input_ids])
            with torch.inference_mode(), self.torchs_own():
                made = self.loaded.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=task.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            text = self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            answers.append(text.strip())
        return answers


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    bench = Bench(given.items)
    warm_up = [replace(task, examples=task.examples[:WARM_UP]) for task in bench.tasks]
    requests = {id(task): bench.requests(task) for task in (*bench.tasks, *warm_up)}
    arms: dict[str, Callable[[Task], list[str]]] = {
        "narrowtune": bench.ours,
        "lm-eval, best": lambda t: bench.harness(t, bench.best, requests[id(t)], best=True),
        "lm-eval, defaults": lambda t: bench.harness(t, bench.default, requests[id(t)], best=False),
        "generate, one by one": bench.loop,
    }
    slow = list(arms)[2:]
    first = next(task for task in bench.tasks if task.mode != "options")
    rounds: list[dict[str, Any]] = []
    for number in range(given.rounds):
        done: dict[str, Any] = {"load": os.getloadavg()[0]}
        for task, short in zip(bench.tasks, warm_up, strict=True):
            answers: dict[str, list[str]] = {}
            order = list(arms)[:2][:: 1 if number % 2 == 0 else -1] + (slow if number == 0 else [])
            for name in order:
                if name.startswith("generate") and task.mode == "options":
                    continue
                arms[name](short)
                if task is first:
                    bench.tolerance = None
                started = time.perf_counter()
                answers[name] = arms[name](task)
                seconds = time.perf_counter() - started
                done[f"{task.name}|{name}"] = {"seconds": seconds}
            for name, theirs in answers.items():
                pairs = zip(theirs, answers["narrowtune"], strict=True)
                same = sum(answer == ours.strip() for answer, ours in pairs)
                found = done[f"{task.name}|{name}"]
                found["same"] = same
                Console(stderr=True).print(number + 1, task.name, name, found)
        rounds.append(done)
        values = {
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "git": provenance.git_state(Path(__file__).parent),
            "arithmetic": bench.arithmetic.to_json(),
            "items": {task.name: len(task.examples) for task in bench.tasks},
            "rounds": rounds,
        }
        given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(show(values, list(arms)))


def show(values: dict[str, Any], arms: list[str]) -> Table:
    """Return what was measured as a table."""
    table = Table(title="Evaluation of SmolLM2-135M")
    for name in ("kind", "arm", "items/s", "narrowtune is × as fast", "same answers"):
        table.add_column(name, justify="left" if name in ("kind", "arm") else "right")
    for kind, count in values["items"].items():
        for arm in arms:
            mine = [done[f"{kind}|{arm}"] for done in values["rounds"] if f"{kind}|{arm}" in done]
            if not mine:
                continue
            ratios = [
                done[f"{kind}|{arm}"]["seconds"] / done[f"{kind}|narrowtune"]["seconds"]
                for done in values["rounds"]
                if f"{kind}|{arm}" in done
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            rate = count / statistics.median(one["seconds"] for one in mine)
            same = f"{min(one['same'] for one in mine)} of {count}"
            table.add_row(kind, arm, f"{rate:.1f}", spread, same)
    return table


if __name__ == "__main__":
    main()
