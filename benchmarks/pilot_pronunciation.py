"""Whether the demo's model can learn to pronounce words: the pilot behind docs/demo.md.

    python benchmarks/pilot_pronunciation.py [--rows 6400] [--recipe language_model]

Teaches words of the CMU dictionary and scores others, of other stems: exact match and phoneme error
rate, before and after, beside two error rates that need no knowledge of English: that of the best
of 200 answers that never change, and that of reading each letter as the phoneme that most often
stands at its place in the taught words.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.json_lines import read_json_lines
from narrowtune.core.run_folder import RunFolder
from narrowtune.demo.files import write_demo_data
from narrowtune.demo.weights import smollm2_folder
from narrowtune.evaluate.metrics import error_rate
from narrowtune.pipeline.teach import teach

RESULTS = Path(__file__).parent / "results" / "pronunciation.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [row for _, row in read_json_lines(path, f"the rows in {path}")]


def word_of(question: str) -> str:
    """Return the word that is asked about."""
    return question.split("'")[1]


def best(answer: str, accepted: list[str]) -> float:
    """Return the error rate against the accepted pronunciation that is nearest."""
    return min(error_rate(answer, reference) for reference in accepted)


def letter_by_letter(taught: list[dict[str, Any]]) -> dict[str, str]:
    """Return the phoneme that most often stands where a letter does, scaled to equal lengths."""
    seen: dict[str, Counter[str]] = {}
    for row in taught:
        word, phonemes = word_of(row["question"]), row["answer"].split()
        for place, letter in enumerate(word):
            at = phonemes[place * len(phonemes) // len(word)]
            seen.setdefault(letter, Counter())[at] += 1
    return {letter: counts.most_common(1)[0][0] for letter, counts in seen.items()}


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def main() -> None:
    """Teach, score, print one line and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6400, help="words to teach")
    parser.add_argument("--test", type=int, default=300, help="words to score")
    parser.add_argument("--recipe", default="language_model")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_demo_data(
            folder / "data",
            skill="pronunciation",
            num_train=given.rows,
            num_validation=0,
            num_test=given.test,
            kinds=("capitals",),
            keep_items=20,
            seed=given.seed,
        )
        config = RunConfig.model_validate(
            {
                "model": str(smollm2_folder()),
                "recipe": given.recipe,
                "skill": data.skill.model_dump(),
                "keep": [keep.model_dump() for keep in data.keep],
                "training": {
                    "learning_rate": given.learning_rate,
                    "global_batch_size": given.batch_size,
                    "per_device_train_batch_size": given.batch_size,
                },
                "eval_batch_size": 64,
                "output_dir": str(folder / "run"),
                "seed": given.seed,
            }
        )
        record = teach(config, console=Console(stderr=True))
        assert record is not None
        found: dict[str, Any] = {**vars(given), "steps": record.training.num_steps}
        for when in ("before", "after"):
            items = read(RunFolder(folder / "run").items(when, "pronunciation"))
            found[when] = {
                "exact_match": mean([float(i["answer"].strip() in i["reference"]) for i in items]),
                "phoneme_error_rate": mean([best(i["answer"], i["reference"]) for i in items]),
            }
        taught = read(folder / "data" / "skill.jsonl")
        tested = read(folder / "data" / "skill_test.jsonl")
    sounds = letter_by_letter(taught)
    spelt = [" ".join(sounds[letter] for letter in word_of(row["question"])) for row in tested]
    accepted = [row["answers"] for row in tested]
    found["letter_by_letter"] = mean([best(s, a) for s, a in zip(spelt, accepted, strict=True)])
    constants = [row["answer"] for row in taught[:200]]
    found["fixed_answer"] = min(mean([best(c, a) for a in accepted]) for c in constants)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
