#!/usr/bin/env python3
"""Times one case with the reference systems, and prints what was measured as JSON.

Run: python measure.py CASE_JSON MODEL THREADS [DEVICE]. MODEL is a directory, or a config.json to make weights up for. A step is forward, backward and AdamW on a batch whose tokens are those of
`reft bench`; the first step warms up and does not count. With "new_tokens" generation is timed instead.
"""
import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import torch

import methods

GENERATIONS = 3  # that count, after one that does not
MASK = (1 << 64) - 1


def token(row, t, vocab_size):
    """As crates/reft-bench/src/timing/case.rs, a test there pins the first ones."""
    place = ((row * 1_000_003 + t + 1) * 2_654_435_761) & MASK
    return ((place >> 8) & 0xFFFFFF) % vocab_size


def batch(case, index, vocab_size, device):
    width = case["prompt_length"] + case["response_length"]
    rows = range(index * case["batch_size"], (index + 1) * case["batch_size"])
    ids = torch.tensor([[token(row, t, vocab_size) for t in range(width)] for row in rows], device=device)
    labels = ids.clone()
    labels[:, :case["prompt_length"]] = -100
    return ids, torch.ones_like(ids), labels


def step_seconds(rival, case, vocab_size):
    parameters = rival.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0) if parameters else None
    seconds = []
    for index in range(1 + case["steps"]):
        ids, mask, labels = batch(case, index, vocab_size, rival.model.device)
        started = time.perf_counter()
        loss = rival.loss(ids, mask, labels)
        loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


class Clock:
    """A streamer that notes when each token comes; transformers hands it the prompt first."""

    def __init__(self):
        self.seconds = []
        self.started = time.perf_counter()

    def put(self, _tokens):
        self.seconds.append(time.perf_counter() - self.started)

    def end(self):
        pass


def generation_seconds(rival, case, vocab_size):
    ids, mask, _ = batch(case, 0, vocab_size, rival.model.device)
    ids, mask = ids[:, :case["prompt_length"]], mask[:, :case["prompt_length"]]
    n, found = case["new_tokens"], []
    for _ in range(1 + GENERATIONS):
        clock = Clock()
        with torch.no_grad():
            rival.generate(ids, mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, streamer=clock)
        tokens = clock.seconds[1:]
        if len(tokens) != n:
            sys.exit(f"{len(tokens)} tokens were generated, expected {n}")
        found.append({"prefill": tokens[0], "decode_per_token": (tokens[-1] - tokens[0]) / (n - 1)})
    return found[1:]


def peak_memory_mb():
    with open("/proc/self/status") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e6


def main():
    case, model_path, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    case["device"] = device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rival = methods.METHODS[case["method"]](case, model_path)
    vocab_size = rival.model.config.vocab_size
    measured = {"step_seconds": [], "generation": []}
    if case["new_tokens"]:
        measured["generation"] = generation_seconds(rival, case, vocab_size)
    else:
        measured["step_seconds"] = step_seconds(rival, case, vocab_size)
    measured["peak_memory_mb"] = peak_memory_mb()
    measured["device_memory_mb"] = torch.cuda.max_memory_reserved() / 1e6 if device != "cpu" else None
    measured["trainable_parameters"] = sum(p.numel() for p in rival.parameters())
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
