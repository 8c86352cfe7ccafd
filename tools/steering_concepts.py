"""Texts of three concepts, for docs/steering.md: tales, sums and praise, each beside texts without it.

    python3 steering_concepts.py --tale alice_in_wonderland.txt --sums gsm8k/train.jsonl --reviews sst2/train.tsv --neutral ultrafeedback_1k.json --output concepts

tale: a book; sums: rows with a question; reviews: text and 1 or 0 for each, praise being 1 against 0; neutral: rows with an output, against which tales
and sums stand. Writes for each concept
    positive.txt, negative.txt   96 texts of 11 words each (questions of 12)
    texts.jsonl                  the same as {"text", "concept"}
    pairs.jsonl                  the same as {"prompt", "chosen", "rejected"} behind six openings
    judge.jsonl, judge-test.jsonl  1,000 and 200 other texts as {"text", "label"}: shown or absent
    prompts.txt                  24 openings of other texts without the concept
"""

import argparse
import json
import random
import re
from pathlib import Path

OPENINGS = ["Here is a text:", "Today", "This is how it begins:", "Then", "The page says:", "I read this:"]
N, JUDGED, PROMPTS, WORDS = 96, 600, 24, 11


def pieces(text):
    words = re.sub(r"\s+", " ", text).split(" ")
    return [" ".join(words[i:i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tale", "sums", "reviews", "neutral", "output"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    random.seed(0)
    neutral = [piece for row in rows(given.neutral) for piece in pieces(row["output"])[:6] if piece.isascii() and len(piece) < 100 and "`" not in piece]
    book = Path(given.tale).read_text()
    tale = [piece for piece in pieces(book[book.index("Alice was beginning"):]) if "* *" not in piece]
    sums = [re.sub(r"\s+", " ", row["question"]) for row in rows(given.sums)]
    sums = [" ".join(text.split(" ")[:WORDS + 1]) for text in sums if text.isascii()]
    reviews = [line.split("\t") for line in Path(given.reviews).read_text().rstrip("\n").split("\n")]
    # both cut to as many words, so that a judge cannot go by length
    of_label = lambda own: [" ".join(text.split()[:WORDS]) for text, label in reviews if label == own and len(text.split()) >= WORDS]
    praise, blame = of_label("1"), of_label("0")
    for texts in (neutral, tale, sums, praise, blame):
        random.shuffle(texts)
    for name, shown, absent, words in (("tale", tale, neutral, 6), ("sums", sums, neutral, 6), ("praise", praise, blame, 4)):
        folder = Path(given.output) / name
        folder.mkdir(parents=True, exist_ok=True)
        positive, negative = shown[:N], absent[:N]
        write(folder / "positive.txt", positive)
        write(folder / "negative.txt", negative)
        texts = [dict(text=text, concept=1) for text in positive] + [dict(text=text, concept=0) for text in negative]
        random.shuffle(texts)
        write(folder / "texts.jsonl", texts)
        pair = lambda i: dict(prompt=OPENINGS[i % 6], chosen=" " + positive[i], rejected=" " + negative[i])
        write(folder / "pairs.jsonl", [pair(i) for i in range(N)])
        judged = [dict(text=text, label="shown") for text in shown[N:N + JUDGED]] + [dict(text=text, label="absent") for text in absent[N:N + JUDGED]]
        random.shuffle(judged)
        write(folder / "judge.jsonl", judged[:-200])
        write(folder / "judge-test.jsonl", judged[-200:])
        first = N + JUDGED
        write(folder / "prompts.txt", [" ".join(text.split(" ")[:words]) for text in absent[first:first + PROMPTS]])


if __name__ == "__main__":
    main()
