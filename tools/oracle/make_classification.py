"""What transformers and PEFT compute with the head of a task on tiny models: tests/oracle/classification.

writes: classification
python: trl

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_classification.py OUT_DIR TESTS_ORACLE_DIR

Models: tiny BERT (with a pooler), RoBERTa and DistilBERT of its own, and tiny_llama of TESTS_ORACLE_DIR (default: OUT_DIR's
parent). Losses are those of transformers (cross-entropy, squared error) and of TRL's reward trainer. LoReFT is
written here in torch: r 2 on layers 0 and 1, the first and the last token. No dropout.
    classification.json   lr; per case: model, method, task, rows (token ids, label), and losses before each of 10 AdamW steps (weight decay 0)
    models/NAME           the encoders, BERT's with a pooler
    CASE/                 the start as PEFT saves it (SEQ_CLS); of LoReFT the start is in CASE.safetensors (start.*)
    CASE.safetensors      logits (rows), grad.* of the loss at the start, final.* after the steps
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from transformers import (
    BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification,
    LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification,
)
from trl.trainer.reward_trainer import RewardTrainer

STEPS = 10
LR = 1e-2
SIZES = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40)
OWN = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES, layer_norm_eps=1e-3)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-3)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(
        vocab_size=64, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=40)),
}
MODULES = dict(bert=["query", "value"], roberta=["query", "value"], distilbert=["q_lin", "v_lin"], llama=["q_proj", "v_proj"])
ALONE = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)

CASES = {
    "bert_lora": ("bert", "lora", "classification"),
    "roberta_lora": ("roberta", "lora", "classification"),
    "distilbert_lora": ("distilbert", "lora", "classification"),
    "llama_lora": ("llama", "lora", "classification"),
    "roberta_regression": ("roberta", "lora", "regression"),
    "llama_reward": ("llama", "lora", "reward"),
    "bert_loreft": ("bert", "loreft", "classification"),
    "roberta_loreft": ("roberta", "loreft", "classification"),
    "llama_loreft": ("llama", "loreft", "classification"),
}


def rows(task, vocabulary):
    ids = lambda i, n: [6 + (i * 31 + t * 17) % (vocabulary - 8) for t in range(n)]
    made = []
    for i in range(6):
        label = [i % 3, round(0.7 * i - 1.3, 3)][task == "regression"]
        made.append(dict(input_ids=ids(i, 5 + 2 * i), label=label))
    if task == "reward":
        return [dict(prompt=ids(i, 3 + i), chosen=ids(i + 50, 4 + i % 3), rejected=ids(i + 90, 6 - i % 4)) for i in range(4)]
    return made


class Loreft(torch.nn.Module):
    def __init__(self, d, r, generator):
        super().__init__()
        raw = torch.randn(d, r, generator=generator)
        self.rotation = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(r, d, bias=False), orthogonal_map="householder")
        self.rotation.weight = torch.linalg.qr(raw).Q
        self.weight = torch.nn.Parameter(0.4 * torch.randn(r, d, generator=generator))
        self.bias = torch.nn.Parameter(0.4 * torch.randn(r, generator=generator))

    def forward(self, h):
        r_t = self.rotation.weight
        return h + (h @ self.weight.T + self.bias - h @ r_t) @ r_t.T


def blocks_of(model):
    inner = getattr(model, model.base_model_prefix)
    for name in ["encoder", "transformer"]:
        if hasattr(inner, name):
            return getattr(inner, name).layer
    return inner.layers


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def write_model(name, folder):
    of_class, config = OWN[name]
    torch.manual_seed(sum(name.encode()))
    model = of_class(config)
    for key, p in model.named_parameters():
        noise = torch.randn(p.shape)
        p.data = 0.3 * noise + (1.0 if p.dim() == 1 and "weight" in key else 0.0) if p.dim() == 1 else noise * (0.7 if "embeddings" in key else 1.2 / p.shape[1] ** 0.5)
    tensors = {k: v for k, v in model.state_dict().items() if "classifier" not in k and not k.endswith("position_ids")}
    folder.mkdir(parents=True, exist_ok=True)
    save(tensors, folder / "model.safetensors")
    config.architectures = None
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json_string(use_diff=True)), indent=2, sort_keys=True) + "\n")


def open_model(name, out, tests, outputs):
    folder = tests / "tiny_llama" if name == "llama" else out / "models" / name
    of_class = LlamaForSequenceClassification if name == "llama" else OWN[name][0]
    more = dict(num_labels=outputs, attn_implementation="eager", dtype=torch.float32)
    return of_class.from_pretrained(folder, **more).eval().requires_grad_(False)


def run(model, ids, edits):
    """The outputs of one row alone, [k]."""
    handles = []
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    positions = [0, len(ids) - 1]
    for layer, edit in edits.items():
        def hook(_m, _i, out, edit=edit):
            h = out[0] if isinstance(out, tuple) else out
            edited = h.clone()
            edited[0, positions] = edit(h[0, positions])
            return (edited, *out[1:]) if isinstance(out, tuple) else edited
        handles.append(blocks_of(inner)[layer].register_forward_hook(hook))
    # one row without padding: the last token is the row's last, whatever the id of padding
    inner.config.pad_token_id = inner.config.pad_token_id if inner.config.pad_token_id is not None else 0
    ids = torch.tensor([ids])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    for handle in handles:
        handle.remove()
    return found


def reward_loss(chosen, rejected):
    """TRL's loss of rewards, [n] each, as its trainer computes it from the outputs of a model."""
    outputs = lambda **_: SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=None), accelerator=ALONE,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0)
    return RewardTrainer.compute_loss(trainer, outputs, {})


def make(name, out, tests):
    model_name, method, task = CASES[name]
    torch.manual_seed(7 + sum(name.encode()))
    generator = torch.Generator().manual_seed(11 + sum(name.encode()))
    model = open_model(model_name, out, tests, 3 if task == "classification" else 1)
    config = model.config
    head = [p for key, p in model.named_parameters() if "classifier" in key or key.startswith("score")]
    for p in head:
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    tensors, edits = {}, {}
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=MODULES[model_name], task_type=TaskType.SEQ_CLS)).eval()
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.data = 0.2 * torch.randn(p.shape, generator=generator)
        model.save_pretrained(out / name)
        (out / name / "README.md").unlink(missing_ok=True)
        (out / name / "adapter_model.safetensors").chmod(0o644)
        adapter = out / name / "adapter_config.json"
        stored = json.loads(adapter.read_text()) | dict(base_model_name_or_path=model_name)
        stored["target_modules"] = sorted(stored["target_modules"])
        adapter.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
        named = {key.replace(".modules_to_save.default", "").replace(".default", ""): p for key, p in model.named_parameters() if p.requires_grad}
    else:
        edits = {layer: Loreft(config.hidden_size, 2, generator) for layer in [0, 1]}
        named = {key: p.requires_grad_() for key, p in model.named_parameters() if "classifier" in key or key.startswith("score")}
        for layer, edit in edits.items():
            named |= {f"{layer}.weight": edit.weight, f"{layer}.bias": edit.bias}
            named[f"{layer}.rotation"] = edit.rotation.parametrizations.weight.original
            tensors[f"start.{layer}.base"] = edit.rotation.parametrizations.weight[0].base  # [d, d]; its first r columns are the rotation
        tensors |= {f"start.{key}": p for key, p in named.items() if "rotation" not in key}
    made = rows(task, config.vocab_size)

    def loss_of():
        if task == "reward":
            of = lambda which: torch.stack([run(model, row["prompt"] + row[which], edits)[0] for row in made])
            chosen, rejected = of("chosen"), of("rejected")
            return reward_loss(chosen, rejected), torch.stack([chosen, rejected], 1)
        logits = torch.stack([run(model, row["input_ids"], edits) for row in made])
        labels = torch.tensor([row["label"] for row in made])
        if task == "regression":
            return torch.nn.functional.mse_loss(logits.squeeze(-1), labels), logits
        return torch.nn.functional.cross_entropy(logits, labels), logits

    tensors = {key: value.detach().clone() for key, value in tensors.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, logits = loss_of()
        loss.backward()
        if step == 0:
            tensors["logits"] = logits.detach().clone()
            tensors |= {f"grad.{key}": p.grad.clone() for key, p in named.items() if "rotation" not in key}
        losses.append(loss.item())
        optimizer.step()
    tensors |= {f"final.{key}": p for key, p in named.items() if "rotation" not in key}
    for layer, edit in edits.items():
        tensors[f"final.{layer}.rotation"] = edit.rotation.weight
    save(tensors, out / f"{name}.safetensors")
    return dict(model=model_name, method=method, task=task, rows=made, losses=losses)


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    tests = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    for name in OWN:
        write_model(name, out / "models" / name)
    found = dict(lr=LR, cases={name: make(name, out, tests) for name in CASES})
    (out / "classification.json").write_text(json.dumps(found, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) // 1000
    print(f"{len(CASES)} cases, {size} kB")


if __name__ == "__main__":
    main()
