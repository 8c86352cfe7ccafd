"""ReFT-r1 and RePS, as their authors compute them, in plain torch: tests/oracle/steering.

writes: steering
python: today
reads: closeness

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_steering.py OUT_DIR TESTS_ORACLE_DIR

Formulas of stanfordnlp/axbench (arXiv:2501.17148, arXiv:2505.20809), one sequence at a time, no padding; reads tiny_llama.
ReFT-r1: with a_t = relu(v.h_t), texts with the concept run with h + mean(top k of a) v; loss = mean next-token loss of their tokens
+ latent_weight * step/steps * mean over texts of the mean over tokens of a (texts with the concept: without the top k). Before AdamW's step v is
divided by its length and its gradient loses what it has along v.
RePS: steered h + v, and away h - relu(h.v)/(v.v) v; with r the sums of log p of replies under the plain model and p those of the run,
-logsigmoid(max(beta (r_loser - r_winner), 1) / |winner| p_winner - p_loser / |loser|), the mean of (chosen wins, steered) and (rejected wins, away). Lengths
are of replies, as in the paper (the repository counts the prompt too). With factors each sequence draws one, f: steered h + (f + b) v, and away
h - relu(h.v + b)/(v.v) v, with a bias b that is trained from 0. The low-rank form is LoRA's: y + f (alpha/r) B A x, away with f = -1; it reads closeness/adapter/start.
    steering.json        rows; CASE: options, layers, lr, loss (and its two terms) before each of 10 AdamW steps
    CASE.safetensors     init.*, grad.* (at the start, of the loss alone), final.*: [64] each; of reps_low_rank those of LoRA
    drawn                of the first pair the loss at the start, by the factors of the chosen and of the rejected reply
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM

STEPS = 10
ALPHA = 6  # of closeness/adapter/start

CASES = {
    "reps": dict(objective="reps", layers=[1], beta=1.0, lr=0.05),
    "reps_two": dict(objective="reps", layers=[0, 2], beta=0.4, lr=0.02),
    "r1": dict(objective="reft-r1", layers=[1], top_k=3, latent_weight=0.5, lr=0.05),
    "r1_two": dict(objective="reft-r1", layers=[0, 3], top_k=7, latent_weight=0.2, lr=0.02),
    "reps_factor": dict(objective="reps", layers=[1], beta=1.0, steering_factors="3", lr=0.05),
    "reps_factor_two": dict(objective="reps", layers=[0, 2], beta=0.4, steering_factors="1.5", lr=0.02),
    "reps_low_rank": dict(objective="reps", beta=0.7, lr=0.01),
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


def towards(vectors, factor):
    return {layer: lambda h, v=v: h + factor * v for layer, v in vectors.items()}


def away(vectors, bias):
    return {layer: lambda h, v=v: h - (torch.relu(h @ v + bias) / v.norm() ** 2)[..., None] * v for layer, v in vectors.items()}


def pair_loss(model, row, beta, runs):
    """runs: what steers towards the chosen reply, by reply, and what steers away from it."""
    with torch.no_grad():
        plain = {k: reply_log_p(model, row["prompt"], row[k]) for k in ("chosen", "rejected")}
    losses = []
    for winner, loser, edits in (("chosen", "rejected", runs[0]), ("rejected", "chosen", runs[1])):
        p = {}
        for k in ("chosen", "rejected"):
            with edits(k) as run:
                p[k] = reply_log_p(run, row["prompt"], row[k])
        factor = torch.clamp(beta * (plain[loser] - plain[winner]), min=1.0)
        losses.append(-logsigmoid(factor / len(row[winner]) * p[winner] - p[loser] / len(row[loser])))
    return losses


def mean_over_pairs(model, beta, runs):
    return torch.stack([loss for row in PAIRS for loss in pair_loss(model, row, beta, runs)]).mean(), []


def reps(model, vectors, case, bias):
    factor = float(case.get("steering_factors", 1)) + bias
    runs = (lambda _: Run(model, towards(vectors, factor)), lambda _: Run(model, away(vectors, bias)))
    return mean_over_pairs(model, case["beta"], runs)


class LowRank:
    """The model with what LoRA adds to some projections, times a factor."""

    def __init__(self, model, tensors, factor):
        self.model, self.tensors, self.factor, self.handles = model, tensors, factor, []

    def __enter__(self):
        def hook(a, b):
            return lambda module, inputs, output: output + self.factor * (ALPHA / len(a)) * (inputs[0] @ a.T @ b.T)
        for name, a in self.tensors.items():
            if ".lora_A." in name:
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                b = self.tensors[name.replace(".lora_A.", ".lora_B.")]
                self.handles.append(self.model.get_submodule(module).register_forward_hook(hook(a, b)))
        return self.model

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def reps_low_rank(model, tensors, case):
    runs = (lambda _: LowRank(model, tensors, 1.0), lambda _: LowRank(model, tensors, -1.0))
    return mean_over_pairs(model, case["beta"], runs)


DRAWN = [1.0, 16.0, 64.0]


def drawn(model, vectors, beta):
    table = []
    for of_chosen in DRAWN:
        for of_rejected in DRAWN:
            own = dict(chosen=of_chosen, rejected=of_rejected)
            runs = (lambda k: Run(model, towards(vectors, own[k])), lambda _: Run(model, away(vectors, 0.0)))
            table.append(dict(**own, loss=torch.stack(pair_loss(model, PAIRS[0], beta, runs)).mean().item()))
    return table


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
        vectors = {layer: torch.nn.Parameter((torch.rand(64) * 2 - 1) / 8) for layer in case.get("layers", [])}
        trained = {f"layers.{layer}.block_output.direction": v for layer, v in vectors.items()}
        bias = torch.nn.Parameter(torch.zeros(1), requires_grad="steering_factors" in case)
        if bias.requires_grad:
            trained["reps/bias"] = bias
        if not vectors:
            start = load_file(folder / "closeness/adapter/start/adapter_model.safetensors")
            trained = {k: torch.nn.Parameter(v) for k, v in start.items()}
        tensors = {f"init.{k}": v.detach().clone() for k, v in trained.items() if vectors}
        optimizer = torch.optim.AdamW(trained.values(), lr=case["lr"], weight_decay=0.0, foreach=False, fused=False)
        steps = []
        for step in range(STEPS):
            optimizer.zero_grad()
            if not vectors:
                loss, terms = reps_low_rank(model, trained, case)
            elif case["objective"] == "reps":
                loss, terms = reps(model, vectors, case, bias)
            else:
                loss, terms = r1(model, vectors, case, step / STEPS)
            loss.backward()
            if step == 0:
                tensors |= {f"grad.{k}": v.grad.clone() for k, v in trained.items()}
                if name == "reps_factor":
                    with torch.no_grad():
                        found["drawn"] = drawn(model, vectors, case["beta"])
            if case["objective"] == "reft-r1":
                with torch.no_grad():
                    for v in vectors.values():
                        v /= v.norm() + torch.finfo(v.dtype).eps
                        v.grad -= (v.grad @ v) * v
            optimizer.step()
            steps.append(dict(loss=loss.item(), terms=terms))
        tensors |= {f"final.{k}": v.detach().clone() for k, v in trained.items()}
        save(tensors, out / f"{name}.safetensors")
        found["cases"][name] = dict(**case, steps=steps)
        print(name, steps[0], steps[-1])
    (out / "steering.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
