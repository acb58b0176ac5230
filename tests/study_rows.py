"""Rows of two small skills and something to keep, for tests of studies."""

import json

WORDS = ("dog", "cat", "sun", "tree", "bread", "rain", "milk", "stone", "car", "pen")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(kind, first, count):
    asked = {"first": "Name the first", "last": "Name the last", "say": "Say"}[kind]
    return [
        {
            "question": f"{asked} of {WORDS[i % 10]} {WORDS[(i * 3 + 1) % 10]} {i}",
            "answer": WORDS[(i * 3 + 1) % 10 if kind == "last" else i % 10],
        }
        for i in range(first, first + count)
    ]
