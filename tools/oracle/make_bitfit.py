"""What transformers and torch compute when the biases of an encoder are trained beside a head: tests/oracle/bitfit.

writes: bitfit
python: today
reads: classification

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_bitfit.py OUT_DIR TESTS_ORACLE_DIR

Models: BERT and RoBERTa of TESTS_ORACLE_DIR/classification/models (default: beside OUT_DIR), each with a head of three classes. Every
bias of the encoder and the head are trained, BERT's pooler is not. No dropout.
    bitfit.json        lr; per model: rows (token ids, label), and losses before each of 10 AdamW steps (weight decay 0)
    MODEL.safetensors  start.* of the head, logits (rows), grad.* of the loss at the start, final.* after the steps, but of
                       biases of keys
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertForSequenceClassification, RobertaForSequenceClassification

STEPS, LR = 10, 1e-2
MODELS = dict(bert=BertForSequenceClassification, roberta=RobertaForSequenceClassification)


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def make(name, folder, out):
    model = MODELS[name].from_pretrained(folder, num_labels=3, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(19 + len(name))
    trained, head = {}, {}
    for key, p in model.named_parameters():
        in_head = key.startswith("classifier")
        if in_head:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
            head[key] = p.detach().clone()
        if in_head or (key.endswith(".bias") and ".pooler." not in key):
            trained[key.removeprefix(name + ".")] = p
        else:
            p.requires_grad_(False)
    rows = [dict(input_ids=[6 + (i * 29 + t * 13) % 56 for t in range(4 + 2 * i)], label=i % 3) for i in range(6)]
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0, foreach=False, fused=False)
    tensors, losses = {f"start.{k}": v for k, v in head.items()}, []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = torch.stack([model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows]))
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            tensors["logits"] = logits
            tensors |= {f"grad.{k}": p.grad.clone() for k, p in trained.items()}
        optimizer.step()
    # the gradient of a bias of keys is noise, which AdamW makes steps of: they differ by the number of threads
    tensors |= {f"final.{k}": p for k, p in trained.items() if not k.endswith("key.bias")}
    save(tensors, out / f"{name}.safetensors")
    print(name, losses[0], losses[-1])
    return dict(rows=rows, losses=losses)


def main():
    out = Path(sys.argv[1])
    tests = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    found = {name: make(name, tests / "classification/models" / name, out) for name in MODELS}
    (out / "bitfit.json").write_text(json.dumps(dict(lr=LR, models=found)) + "\n")


if __name__ == "__main__":
    main()
