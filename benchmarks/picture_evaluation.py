"""Free answers to several questions about one picture: shared, not shared, and one by one.

    OMP_NUM_THREADS=1 python benchmarks/picture_evaluation.py      # 15 minutes on one core

The two models of `shared_pictures.py` in fp32: the reference model (7 x 7 visual tokens a picture)
and the wider one with random weights (here 14 x 14, for time's sake). 1, 4 or 8 questions of drawn
words a picture, in an order that parts them; answers of at most 12 tokens; batches of 8. Arms:
narrowtune as it evaluates, the same with rows as they come (`packing` never: every question has its
picture computed, and neighbours in a batch are alike in length alone), and a loop of transformers'
`generate` over one item at a time, as the reference adapters of lmms-eval ask; it is asked the
first few items only, since it takes as long for each. Both of ours look a picture's features up
where they were computed for the same answers, as in a run, so that they differ by the language
model alone; the loop computes them for every item. The noise of batched arithmetic is measured
before, once a model, and not timed: a run measures it once for all its tasks.

All arms of a case take turns in one process, round after round, in torch's own arithmetic. Seconds
are the process's own, of one thread, since the machine may be shared; those by the clock are kept
beside them. Results: benchmarks/results/picture_evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from shared_pictures import make_examples, make_model

from narrowtune.core import provenance
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import Encoded, collate
from narrowtune.engine.features import FeatureStore, remembered_features
from narrowtune.engine.forward import evaluating
from narrowtune.engine.generate import generate_greedy, measure_noise, stop_tokens
from narrowtune.engine.packing import packing
from narrowtune.models.load import LoadedModel, load_model

RESULTS = Path(__file__).parent / "results" / "picture_evaluation.json"
CASES = {
    ("reference", 1): 32,
    ("reference", 4): 32,
    ("reference", 8): 32,
    ("wide", 4): 4,
    ("wide", 8): 8,
}
"""Items, by model and questions a picture."""
ALONE = {"reference": 8, "wide": 1}
"""Items that the loop is asked."""
SIDE = 14 * 28
"""Pixels of the wide model's pictures: 14 visual tokens of 28."""
ROUNDS, BATCH, TOKENS = 3, 8, 12
ARMS = ("shared", "not shared", "generate, one by one")


class Case:
    """A model and its items, asked in three ways."""

    def __init__(self, loaded: LoadedModel, model: str, questions: int) -> None:
        self.loaded, self.num_alone = loaded, ALONE[model]
        self.encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
        examples = make_examples(model, questions, CASES[model, questions], SIDE)
        random.Random(0).shuffle(examples)
        self.prompts = [self.encoder.encode_prompt(example.prompt) for example in examples]
        self.stop = self.encoder.stop_tokens
        self.tolerance = 0.0

    def measure_noise(self) -> float:
        """Return the larger of what both ways do to logits."""
        with remembered_features(self.loaded, FeatureStore()):
            shared = measure_noise(self.loaded, self.prompts, num_rows=2)
            with packing("never"):
                return max(shared, measure_noise(self.loaded, self.prompts, num_rows=2))

    def ask(self, arm: str) -> list[list[int]]:
        """Return the tokens of the answers; the loop's to the first items."""
        prompts = self.prompts
        if arm == ARMS[2]:
            return [self._alone(prompt) for prompt in prompts[: self.num_alone]]
        when = "cheaper" if arm == "shared" else "never"
        with remembered_features(self.loaded, FeatureStore()), packing(when):
            found = generate_greedy(
                self.loaded,
                prompts,
                max_new_tokens=TOKENS,
                batch_size=BATCH,
                extra_stop_tokens=self.stop,
                tolerance=self.tolerance,
            )
        return [list(answer.token_ids) for answer in found]

    def _alone(self, prompt: Encoded) -> list[int]:
        inputs = collate([prompt], self.loaded.tokenizer.pad_token_id)
        del inputs["labels"]
        # What stands for a picture is no answer, and ours never give it.
        config, stop = self.loaded.model.config, stop_tokens(self.loaded, self.stop)
        with evaluating(self.loaded.model):
            made = self.loaded.model.generate(
                **inputs,
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=list(stop),
                suppress_tokens=[config.image_token_id, config.video_token_id],
                pad_token_id=self.loaded.tokenizer.pad_token_id,
            )
        new = made[0, len(prompt.input_ids) :].tolist()
        return new[:-1] if new[-1] in stop else new


def positions(loaded: LoadedModel, ask: Callable[[], Any]) -> tuple[Any, int]:
    """Return what `ask` does, and the positions that the language model computed for it."""
    total = 0

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal total
        total += kwargs["input_ids"].numel()

    hook = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return ask(), total
    finally:
        hook.remove()


def measure(cases: dict[str, Case], rounds: int, save: Callable[[list[Any]], None]) -> None:
    """Time every arm of every case, round after round."""
    done: list[dict[str, Any]] = []
    for number in range(rounds):
        found: dict[str, Any] = {"load": os.getloadavg()[0]}
        for key, case in cases.items():
            answers = {}
            order = ARMS[number % 3 :] + ARMS[: number % 3]
            for arm in order:
                started, own = time.perf_counter(), time.process_time()
                answers[arm], total = positions(case.loaded, lambda c=case, a=arm: c.ask(a))
                own, wall = time.process_time() - own, time.perf_counter() - started
                each = len(answers[arm])
                measured = {"seconds": own, "wall": wall, "positions": total}
                found[f"{key}|{arm}"] = {name: one / each for name, one in measured.items()}
            for arm, mine in answers.items():
                same = [
                    sum(a == b for a, b in zip(mine, answers[other], strict=False))
                    for other in (ARMS[0], ARMS[2])
                ]
                found[f"{key}|{arm}"]["same"] = same
                Console(stderr=True).print(number + 1, key, arm, found[f"{key}|{arm}"])
        done.append(found)
        save(done)


def show(values: dict[str, Any]) -> Table:
    """Return what was measured as a table."""
    table = Table(title="Free answers about pictures")
    columns = (
        "model",
        "questions",
        "arm",
        "ms an item",
        "shared is × as fast",
        "positions an item",
    )
    for name in (*columns, "same as shared"):
        table.add_column(name, justify="left" if name in ("model", "arm") else "right")
    for key, count in values["items"].items():
        for arm in ARMS:
            mine = [done[f"{key}|{arm}"] for done in values["rounds"]]
            ratios = [
                done[f"{key}|{arm}"]["seconds"] / done[f"{key}|shared"]["seconds"]
                for done in values["rounds"]
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            taken = f"{1000 * statistics.median(one['seconds'] for one in mine):.0f}"
            asked = min(count, ALONE[key.split("|")[0]]) if arm == ARMS[2] else count
            same = f"{min(one['same'][0] for one in mine)} of {asked}"
            table.add_row(*key.split("|"), arm, taken, spread, f"{mine[0]['positions']:.0f}", same)
    return table


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="+", choices=list(ALONE), default=list(ALONE))
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not given.table:
        with tempfile.TemporaryDirectory() as made:
            cases = {}
            for model in given.models:
                loaded = load_model(
                    str(make_model(model, Path(made) / model, SIDE)), dtype="float32"
                )
                own = {q: Case(loaded, model, q) for name, q in CASES if name == model}
                tolerance = own[4].measure_noise()
                for questions, case in own.items():
                    case.tolerance = tolerance
                    cases[f"{model}|{questions}"] = case
            values = {
                "versions": provenance.versions(),
                "hardware": provenance.hardware(),
                "git": provenance.git_state(Path(__file__).parent),
                "threads": torch.get_num_threads(),
                "items": {key: len(case.prompts) for key, case in cases.items()},
            }

            def save(rounds: list[Any]) -> None:
                text = json.dumps({**values, "rounds": rounds}, indent=1) + "\n"
                given.output.write_text(text, encoding="utf-8")

            measure(cases, given.rounds, save)
    Console(width=120).print(show(json.loads(given.output.read_text("utf-8"))))


if __name__ == "__main__":
    main()
