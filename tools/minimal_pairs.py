"""Minimal pairs as rows of preferences, from CausalGym's templates (Arora et al. 2024, arXiv:2402.12560).

    python3 tools/minimal_pairs.py --causalgym CAUSALGYM/data/templates --output runs/pairs [--rows 24] [--seed 0]

A template is a sentence with a place whose word decides how the sentence goes on: after "The guard that hates the doctors" comes " is",
after "The guards that hate the doctors" comes " are". A row's prompt is such a sentence; `chosen` is a continuation that its word asks for,
`rejected` the one that the other word would ask for. Both words are as frequent, so that no continuation is the better one by itself.

Whole templates are held out, by the ends of their names: test.jsonl has those with an object relative clause, a modifier or one embedding
more, validation.jsonl those with a prepositional phrase, train.jsonl all others. Needs nothing but Python.
"""

import argparse
import json
import pathlib
import random

HELD_OUT = {"test": ["obj-relc", "mod", "embed_4"], "validation": ["pp"]}


def part_of(name):
    return next((part for part, ends in HELD_OUT.items() if name.endswith(tuple(ends))), "train")


def drawn(template, draw, kind):
    """A sentence of one kind: variables that share the name before a point are drawn together."""
    deciding = template["label"] if isinstance(template["label"], list) else [template["label"]]
    places, words = {}, {}
    for name, choices in template["variables"].items():
        if name in deciding:
            words[name] = draw.choice(choices[kind])
        else:
            place = places.setdefault(name.split(".")[0], draw.randrange(len(choices)))
            words[name] = choices[place % len(choices)]
    text = draw.choice(template["templates"])
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def rows_of(template, n, draw):
    space = " " if template["result_prepend_space"] else ""
    kinds, rows = list(template["labels"]), []
    tries = 0
    while len(rows) < n and tries < 100 * n:
        tries += 1
        kind = kinds[len(rows) % 2]
        other = kinds[1 - kinds.index(kind)]
        i = draw.randrange(len(template["labels"][kind]))
        chosen, rejected = (space + template["labels"][own][i] for own in (kind, other))
        row = {"prompt": drawn(template, draw, kind), "chosen": chosen, "rejected": rejected}
        if row not in rows:
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--causalgym", required=True, type=pathlib.Path, help="directory with CausalGym's syntaxgym.json")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="directory for the three files")
    parser.add_argument("--rows", type=int, default=24, help="pairs of each template")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    args = parser.parse_args()
    templates = json.loads((args.causalgym / "syntaxgym.json").read_text())
    parts = {"train": [], "validation": [], "test": []}
    for name, template in sorted(templates.items()):
        rows = rows_of(template, args.rows, random.Random(f"{args.seed} {name}"))
        parts[part_of(name)].append((name, rows))
    args.output.mkdir(parents=True, exist_ok=True)
    for part, found in parts.items():
        rows = [row for _, own in found for row in own]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output / f"{part}.jsonl").write_text(text)
        print(f"{part}.jsonl: {len(rows)} pairs of {len(found)} templates: {', '.join(name for name, _ in found)}")


if __name__ == "__main__":
    main()
