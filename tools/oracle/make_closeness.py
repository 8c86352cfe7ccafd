"""A task's loss with a divergence from the frozen model beside it, in plain torch: tests/oracle/closeness.

writes: closeness
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_closeness.py OUT_DIR TESTS_ORACLE_DIR

Reads tiny_llama of TESTS_ORACLE_DIR (default: OUT_DIR's parent). LoRA on it, started at random, so that adapted and frozen model differ:
    adapter/start/       the adapter directory that PEFT writes
    closeness.json       rows and replay: input_ids, prompt_length; lr; per case: weight, top_k, where (task or replay), and the steps: loss,
                         task and kl before each of 5 AdamW steps. kl is the mean over labels, in nats, of the top_k likeliest tokens of the
                         frozen model and all others as one; top_k 0: of the whole vocabulary
    CASE.safetensors     grad.* of the loss at the start, final.* after the steps; PEFT's names without ".default"
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

SEED = 20261126
STEPS = 5
LR = 5e-3

# name: weight, top_k, where the divergence is taken
CASES = {
    "whole": (0.7, 0, "task"),
    "few": (0.7, 5, "task"),
    "replay": (1.5, 5, "replay"),
}


def rows(n, offset):
    """Rows of unequal lengths and prompts."""
    made = []
    for i in range(offset, offset + n):
        prompt_length, length = 3 + i * 5 % 4, 8 + i * 5 % 4 + i * 3 % 5
        made.append(dict(input_ids=[3 + (i * 31 + t * 17) % 120 for t in range(length)], prompt_length=prompt_length))
    return made


def start(folder):
    model = LlamaForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval().requires_grad_(False)
    model.name_or_path = model.config._name_or_path = "tiny_llama"
    options = dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.0)
    wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **options)).eval()
    generator = torch.Generator().manual_seed(SEED)
    parameters = [(n, p) for n, p in wrapped.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for _, p in parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.08)
    return wrapped, parameters


def predicted(model, row):
    """Logits where the row's labels stand, and the labels: a row at a time, so that nothing is padding."""
    ids = torch.tensor([row["input_ids"]])
    logits = model(input_ids=ids).logits[0, row["prompt_length"] - 1:-1]
    return logits, ids[0, row["prompt_length"]:]


def divergence(frozen, adapted, top_k):
    p, q = frozen.double().log_softmax(-1), adapted.double().log_softmax(-1)
    if top_k:
        kept = p.topk(top_k, -1).indices
        others = torch.ones_like(p, dtype=torch.bool).scatter(-1, kept, False)

        def with_others(x):
            rest = x.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
            return torch.cat([x.gather(-1, kept), rest], -1)

        p, q = with_others(p), with_others(q)
    return (p.exp() * (p - q)).sum(-1)


def losses(wrapped, task, kept, weight, top_k):
    own = [predicted(wrapped, row) for row in task]
    cross = torch.cat([torch.nn.functional.cross_entropy(logits, ids, reduction="none") for logits, ids in own]).mean()
    found = []
    for row in kept:
        with torch.no_grad(), wrapped.disable_adapter():
            frozen, _ = predicted(wrapped, row)
        found.append(divergence(frozen, predicted(wrapped, row)[0], top_k))
    kl = torch.cat(found).mean().float()
    return cross + weight * kl, cross, kl


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, seed=str(SEED))
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def main():
    out = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    task, replay = rows(6, 0), rows(4, 20)
    found = dict(rows=task, replay=replay, lr=LR, cases={})
    for name, (weight, top_k, where) in CASES.items():
        wrapped, parameters = start(folder)
        if name == "whole":
            shutil.rmtree(out / "adapter/start", ignore_errors=True)
            wrapped.save_pretrained(out / "adapter/start")
            (out / "adapter/start" / "README.md").unlink(missing_ok=True)
            (out / "adapter/start" / "adapter_model.safetensors").chmod(0o644)
        optimizer = torch.optim.AdamW([p for _, p in parameters], lr=LR, weight_decay=0.0, foreach=False, fused=False)
        tensors, steps = {}, []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss, cross, kl = losses(wrapped, task, replay if where == "replay" else task, weight, top_k)
            loss.backward()
            steps.append(dict(loss=loss.item(), task=cross.item(), kl=kl.item()))
            if step == 0:
                tensors |= {f"grad.{n.replace('.default', '')}": p.grad.clone() for n, p in parameters}
            optimizer.step()
        tensors |= {f"final.{n.replace('.default', '')}": p.detach().clone() for n, p in parameters}
        assert steps[0]["kl"] > 0.05, steps[0]
        save(tensors, out / f"{name}.safetensors")
        found["cases"][name] = dict(weight=weight, top_k=top_k, where=where, steps=steps)
    (out / "closeness.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
