"""Which of six data sets is a question from? Rows of LLM-Adapters' data sets, for `reft compare` on a task of six classes.

    python3 question_kinds.py --dataset llm_adapters/dataset --output kinds

The questions, without their choices, of BoolQ, OpenBookQA, ARC-Easy, PIQA, SVAMP and GSM8K. Writes train.tsv (1,000 rows), dev.tsv (198) and
test.tsv (702), each with question<TAB>class from 0 to 5; no question is in two of them.
"""

import argparse
import json
import random
import re
from pathlib import Path

SETS = ["boolq", "openbookqa", "ARC-Easy", "piqa", "SVAMP", "gsm8k"]
LEADS = ("Please choose the correct answer to the question: ", "Please choose the correct solution to the question: ",
         "Please answer the following question with true or false, question: ")
# of each set
TRAIN, DEV, TEST = 167, 33, 117


def question(row):
    text = row["instruction"]
    for lead in LEADS:
        text = text.removeprefix(lead)
    return text.split("\n\n")[0].strip()


def questions(folder):
    files = ["test.json"] + (["train.json"] if folder.name == "openbookqa" else [])
    found = {question(row) for name in files for row in json.loads((folder / name).read_text())}
    return sorted(text for text in found if 10 < len(text) < 400)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    drawn = random.Random(7)
    parts = {"train": [], "dev": [], "test": []}
    for kind, name in enumerate(SETS):
        rows = [(text, kind) for text in questions(given.dataset / name)]
        drawn.shuffle(rows)
        parts["train"] += rows[:TRAIN]
        parts["dev"] += rows[TRAIN:TRAIN + DEV]
        parts["test"] += rows[TRAIN + DEV:TRAIN + DEV + TEST]
    given.output.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        drawn.shuffle(rows)
        lines = [re.sub(r"\s+", " ", text) + f"\t{kind}\n" for text, kind in rows]
        (given.output / f"{name}.tsv").write_text("".join(lines[:1000]))


if __name__ == "__main__":
    main()
