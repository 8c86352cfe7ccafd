"""Time of a training step against the length of prompts and of replies: runs `reft bench`, prints tables, draws docs/cost-over-length.svg.

    python3 tools/cost_over_length.py --model models/SmolLM2-135M-Instruct [--threads 2] [--steps 2]

LoReFT on all layers, 2 rows a batch, f32: the last prompt token with its frozen work kept (l1), the same without (l1, --no-reuse), and
the first and last seven (f7+l7), where everything behind the first token depends on the edits.
"""

import argparse
import json
import math
import subprocess

BENCH = ["target/debug/reft", "bench", "--methods", "loreft", "--rank", "8", "--batch-size", "2", "--rounds", "1", "--json"]
SERIES = [
    ("l1, kept", ["--positions", "l1"], "#0b62c4"),
    ("l1, --no-reuse", ["--positions", "l1", "--no-reuse"], "#d1571b"),
    ("f7+l7", ["--positions", "f7+l7", "--share-weights"], "#1a7f5a"),
]
PROMPTS = [32, 64, 128, 256, 512, 1024]
REPLIES = [4, 8, 16, 32, 64, 128]
FIXED = {"prompt": 128, "reply": 8}


def seconds(options, prompt, reply, flags):
    lengths = ["--prompt-length", str(prompt), "--response-length", str(reply)]
    command = BENCH + options + lengths + flags
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(result.stdout)["rows"][0]["step_seconds_median"]


def table(title, lengths, rows):
    print(f"| {title} | " + " | ".join(str(n) for n in lengths) + " |")
    print("| --- |" + " ---: |" * len(lengths))
    for (name, _, _), values in zip(SERIES, rows):
        print(f"| {name} | " + " | ".join(f"{value:.3g} s" for value in values) + " |")
    print(flush=True)


def panel(left, title, lengths, rows, low, high):
    """One plot with logarithmic axes, 360 wide."""
    x = lambda n: left + 50 + 270 * math.log(n / lengths[0]) / math.log(lengths[-1] / lengths[0])
    y = lambda s: 250 - 210 * math.log(s / low) / math.log(high / low)
    out = [f'<text class="head" x="{left + 50}" y="20">{title}</text>']
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for tick in (10.0**exponent, 3 * 10.0**exponent):
            if low <= tick <= high:
                out.append(f'<path class="grid" d="M{left + 50} {y(tick):.1f}h270"/>')
                out.append(f'<text x="{left + 44}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} s</text>')
    for n in lengths:
        out.append(f'<text x="{x(n):.1f}" y="270" text-anchor="middle">{n}</text>')
    for (name, _, colour), values in zip(SERIES, rows):
        points = " ".join(f"{x(n):.1f},{y(s):.1f}" for n, s in zip(lengths, values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [
            f'<circle cx="{x(n):.1f}" cy="{y(s):.1f}" r="3.5" fill="{colour}"><title>{name}, {n}: {s:.3g} s</title></circle>'
            for n, s in zip(lengths, values)
        ]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--steps", default="2")
    parser.add_argument("--output", default="docs/cost-over-length.svg")
    args = parser.parse_args()
    options = ["--model", args.model, "--threads", args.threads, "--steps", args.steps]
    by_prompt = [[seconds(options, n, FIXED["reply"], flags) for n in PROMPTS] for _, flags, _ in SERIES]
    table(f"prompt tokens (reply {FIXED['reply']})", PROMPTS, by_prompt)
    by_reply = [[seconds(options, FIXED["prompt"], n, flags) for n in REPLIES] for _, flags, _ in SERIES]
    table(f"reply tokens (prompt {FIXED['prompt']})", REPLIES, by_reply)
    every = [value for row in by_prompt + by_reply for value in row]
    low, high = 0.9 * min(every), 1.1 * max(every)
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 300" role="img" aria-label="step time against prompt and reply length">',
        "<style>svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1b1f24}.head{font-weight:600}.grid{stroke:#d9dee4}</style>",
        *panel(0, f"by prompt tokens, replies of {FIXED['reply']}", PROMPTS, by_prompt, low, high),
        *panel(360, f"by reply tokens, prompts of {FIXED['prompt']}", REPLIES, by_reply, low, high),
    ]
    for i, (name, _, colour) in enumerate(SERIES):
        lines.append(f'<circle cx="{60 + 150 * i}" cy="290" r="4" fill="{colour}"/><text x="{70 + 150 * i}" y="294">{name}</text>')
    with open(args.output, "w", encoding="utf-8") as file:
        file.write("\n".join(lines + ["</svg>"]) + "\n")


main()
