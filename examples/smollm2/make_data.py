#!/usr/bin/env python3
"""Write data/train.jsonl and data/held_out.jsonl from the files that Self-Instruct and GSM8K publish.

    python3 make_data.py seed_tasks.jsonl test.jsonl

The rows are already in data/; this is how they came to be. data/README.md names the sources. Rows stand in the order of
the SHA-256 of their prompt: a shuffle that needs no random numbers and that a new row does not disturb.
"""

import hashlib
import json
import sys
from pathlib import Path

HELD_OUT = 64


def self_instruct(task):
    first = task["instances"][0]
    return {
        "prompt": "\n\n".join(part for part in (task["instruction"], first["input"]) if part),
        "response": first["output"].strip(),
    }


def gsm8k(problem):
    return {"prompt": problem["question"], "response": problem["answer"].strip()}


def read(path, row):
    with open(path, encoding="utf-8") as lines:
        return [row(json.loads(line)) for line in lines]


def write(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{len(rows):>5} rows  {path}")


def main():
    seed_tasks, problems = sys.argv[1:]
    rows = read(seed_tasks, self_instruct) + read(problems, gsm8k)
    rows.sort(key=lambda row: hashlib.sha256(row["prompt"].encode()).digest())
    data = Path(__file__).parent / "data"
    write(data / "held_out.jsonl", rows[:HELD_OUT])
    write(data / "train.jsonl", rows[HELD_OUT:])


if __name__ == "__main__":
    main()
