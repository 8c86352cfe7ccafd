"""ReFT-r1 and RePS, as their authors compute them, in plain torch: tests/oracle/steering.

writes: steering
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_steering.py OUT_DIR TESTS_ORACLE_DIR

Formulas of stanfordnlp/axbench (arXiv:2501.17148, arXiv:2505.20809), one sequence at a time, no padding; reads tiny_llama.
ReFT-r1: with a_t = relu(v.h_t), texts with the concept run with h + mean(top k of a) v; loss = mean next-token loss of their tokens
+ latent_weight * step/steps * mean over texts of the mean over tokens of a (texts with the concept: without the top k). Before AdamW's step v is
divided by its length and its gradient loses what it has along v.
RePS: steered h + v, and away h - relu(h.v)/(v.v) v; with r the sums of log p of replies under the plain model and p those of the run,
-logsigmoid(max(beta (r_loser - r_winner), 1) / |winner| p_winner - p_loser / |loser|), the mean of (chosen wins, steered) and (rejected wins, away). Lengths
are of replies, as in the paper (the repository counts the prompt too).
    steering.json        rows; CASE: options, layers, lr, loss (and its two terms) before each of 10 AdamW steps
    CASE.safetensors     init.*, grad.* (at the start, of the loss alone), final.*: [64] each
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM

STEPS = 10

CASES = {
    "reps": dict(objective="reps", layers=[1], beta=1.0, lr=0.05),
    "reps_two": dict(objective="reps", layers=[0, 2], beta=0.4, lr=0.02),
    "r1": dict(objective="reft-r1", layers=[1], top_k=3, latent_weight=0.5, lr=0.05),
    "r1_two": dict(objective="reft-r1", layers=[0, 3], top_k=7, latent_weight=0.2, lr=0.02),
}


def ids(n, start):
    return [3 + (start * 29 + t * 13 + (t * t) % 7) % 120 for t in range(n)]


PAIRS = [dict(prompt=ids(4 + i % 3, i), chosen=ids(3 + i % 4, 5 + i), rejected=ids(6 - i % 3, 11 + i)) for i in range(4)]
TEXTS = [dict(input_ids=ids(5 + 3 * (i % 3), 2 * i + 1), concept=int(i % 2 == 0)) for i in range(5)]


class Run:
    """The model with edits at the outputs of some blocks."""

    def __init__(self, model, edits):
        self.model, self.edits, self.handles = model, edits, []

    def __enter__(self):
        def hook(edit):
            return lambda module, inputs, output: (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)
        self.handles = [self.model.model.layers[layer].register_forward_hook(hook(edit)) for layer, edit in self.edits.items()]
        return self.model

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def reply_log_p(model, prompt, reply):
    sequence = torch.tensor([prompt + reply])
    log_p = model(input_ids=sequence).logits[0, len(prompt) - 1:-1].log_softmax(-1)
    return log_p.gather(-1, sequence[0, len(prompt):, None]).sum()


def reps(model, vectors, case):
    towards = {layer: lambda h, v=v: h + v for layer, v in vectors.items()}
    away = {layer: lambda h, v=v: h - (torch.relu(h @ v) / v.norm() ** 2)[..., None] * v for layer, v in vectors.items()}
    losses = []
    for row in PAIRS:
        with torch.no_grad():
            plain = {k: reply_log_p(model, row["prompt"], row[k]) for k in ("chosen", "rejected")}
        for winner, loser, edits in (("chosen", "rejected", towards), ("rejected", "chosen", away)):
            with Run(model, edits) as run:
                p = {k: reply_log_p(run, row["prompt"], row[k]) for k in ("chosen", "rejected")}
            factor = torch.clamp(case["beta"] * (plain[loser] - plain[winner]), min=1.0)
            losses.append(-logsigmoid(factor / len(row[winner]) * p[winner] - p[loser] / len(row[loser])))
    return torch.stack(losses).mean(), []


def r1(model, vectors, case, share):
    nll, n, latents = 0.0, 0, []
    for row in TEXTS:
        kept = []

        def edit(h, v):
            a = torch.relu(h[0] @ v)
            top = a.topk(min(case["top_k"], len(a))).values
            kept.append(((a.sum() - top.sum()) if row["concept"] else a.sum()) / len(a))
            return h + top.mean() * v if row["concept"] else h

        sequence = torch.tensor([row["input_ids"]])
        with Run(model, {layer: lambda h, v=v: edit(h, v) for layer, v in vectors.items()}) as run:
            log_p = run(input_ids=sequence).logits[0, :-1].log_softmax(-1)
        if row["concept"]:
            nll = nll - log_p.gather(-1, sequence[0, 1:, None]).sum()
            n += len(row["input_ids"]) - 1
        latents.append(torch.stack(kept).sum())
    terms = [nll / n, torch.stack(latents).mean() * share]
    return terms[0] + case["latent_weight"] * terms[1], [t.item() for t in terms]


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    model = LlamaForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval().requires_grad_(False)
    found = dict(pairs=PAIRS, texts=TEXTS, cases={})
    for seed, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        vectors = {layer: torch.nn.Parameter((torch.rand(64) * 2 - 1) / 8) for layer in case["layers"]}
        key = lambda layer: f"layers.{layer}.block_output.direction"
        tensors = {f"init.{key(layer)}": v.detach().clone() for layer, v in vectors.items()}
        optimizer = torch.optim.AdamW(vectors.values(), lr=case["lr"], weight_decay=0.0, foreach=False, fused=False)
        steps = []
        for step in range(STEPS):
            optimizer.zero_grad()
            if case["objective"] == "reps":
                loss, terms = reps(model, vectors, case)
            else:
                loss, terms = r1(model, vectors, case, step / STEPS)
            loss.backward()
            if step == 0:
                tensors |= {f"grad.{key(layer)}": v.grad.clone() for layer, v in vectors.items()}
            if case["objective"] == "reft-r1":
                with torch.no_grad():
                    for v in vectors.values():
                        v /= v.norm() + torch.finfo(v.dtype).eps
                        v.grad -= (v.grad @ v) * v
            optimizer.step()
            steps.append(dict(loss=loss.item(), terms=terms))
        tensors |= {f"final.{key(layer)}": v.detach().clone() for layer, v in vectors.items()}
        save(tensors, out / f"{name}.safetensors")
        found["cases"][name] = dict(**case, steps=steps)
        print(name, steps[0], steps[-1])
    (out / "steering.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
