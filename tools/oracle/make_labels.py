"""What scikit-learn and SciPy measure of classes and numbers, and how transformers cuts long texts: tests/oracle/labels.

writes: labels
python: trl
reads: encoders

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 scikit-learn==1.9.1 scipy==1.17.1 numpy
    venv/bin/python make_labels.py OUT_DIR TESTS_ORACLE_DIR

    measures.json   classes (found, right, k) and numbers (x, y) with what is measured of them; F1 of two classes is that of class 1, of
                    more the mean over all k
    cut_texts.json  texts, or pairs of them, max_length, and the ids that the tokenizers of TESTS_ORACLE_DIR/encoders make of them
                    (default: beside OUT_DIR)
"""

import json
import os
import random
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from transformers import AutoTokenizer

TEXTS = [["the café is open."], ["the cafés, the café", "is open"], ["is", "the café is open. the café is open."], ["open", "open"]]


def measures():
    draw = random.Random(5)
    classes = []
    for k, n, p in [(2, 40, 0.7), (2, 31, 0.2), (3, 50, 0.6), (4, 12, 0.4), (2, 9, 0.0)]:
        right = [draw.randrange(k) for _ in range(n)]
        found = [0 if p == 0 else own if draw.random() < p else draw.randrange(k) for own in right]
        average = dict(average="binary") if k == 2 else dict(average="macro", labels=list(range(k)))
        classes.append(dict(
            k=k, found=found, right=right, accuracy=accuracy_score(right, found),
            f1=f1_score(right, found, zero_division=0.0, **average), matthews=matthews_corrcoef(right, found)))
    numbers = []
    for n, ties in [(30, False), (25, True)]:
        x = [draw.gauss(0, 1) for _ in range(n)]
        y = [0.5 * own + draw.gauss(0, 1) for own in x]
        if ties:
            x, y = [round(own) + 0.0 for own in x], [round(own) + 0.0 for own in y]
        numbers.append(dict(
            x=x, y=y, pearson=float(pearsonr(x, y).statistic), spearman=float(spearmanr(x, y).statistic),
            mean_squared_error=mean_squared_error(x, y)))
    return dict(classes=classes, numbers=numbers)


def cut_texts(folder):
    cut = {}
    for name in ["bert", "roberta"]:
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        cut[name] = [
            dict(text=text, max_length=n, ids=tokenizer(*text, truncation=True, max_length=n)["input_ids"])
            for text in TEXTS for n in [5, 6, 7, 9, 40]]
    return cut


def main():
    out = Path(sys.argv[1])
    oracle = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    for name, found in [("measures.json", measures()), ("cut_texts.json", cut_texts(oracle / "encoders"))]:
        (out / name).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
