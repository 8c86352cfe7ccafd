"""What TRL computes of preferences (DPO, IPO, ORPO, SimPO): tests/oracle/preferences.

writes: preferences
python: trl
reads: closeness

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_preferences.py OUT_DIR TESTS_ORACLE_DIR

Reads tiny_llama and closeness/adapter/start (an adapter that PEFT wrote) of TESTS_ORACLE_DIR (default: OUT_DIR's parent). Losses are TRL's own: of
DPOTrainer._compute_loss (dpo, ipo), ORPOTrainer.odds_ratio_loss, CPOTrainer.cpo_loss (simpo, and dpo with label smoothing, which TRL's DPO has no
more). ORPO's next-token loss is that of the chosen replies alone, as in the paper; TRL's is of the prompts too.
    preferences.json     pairs: prompt, chosen, rejected as token ids; lr. CASE: objective and its options, reference (base or start), and steps: loss,
                         margin and accuracy before each of 4 AdamW steps. fixed: replies' log-probabilities and their lengths, and per case loss and
                         its gradient
    CASE.safetensors     grad.* of the loss at the start, final.* after the steps; PEFT's names without ".default"
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
import trl
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

STEPS = 4
LR = 5e-3

CASES = {
    "dpo": dict(objective="dpo", beta=0.3, reference="base"),
    "dpo_start": dict(objective="dpo", beta=0.3, reference="start"),
    "dpo_smoothed": dict(objective="dpo", beta=0.3, label_smoothing=0.15, reference="base"),
    "ipo": dict(objective="ipo", beta=0.2, reference="base"),
    "orpo": dict(objective="orpo", beta=0.4),
    "simpo": dict(objective="simpo", beta=2.0, simpo_gamma=0.7),
}

ALONE = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def pairs():
    made = []
    for i in range(4):
        ids = lambda n, start: [3 + (start + i * 29 + t * 13) % 120 for t in range(n)]
        made.append(dict(prompt=ids(4 + i % 3, 0), chosen=ids(3 + i % 4, 50), rejected=ids(6 - i % 3, 77)))
    return made


def token_log_probabilities(model, prompt, reply):
    ids = torch.tensor([prompt + reply])
    log_p = model(input_ids=ids).logits[0, len(prompt) - 1:-1].log_softmax(-1)
    return log_p.gather(-1, ids[0, len(prompt):, None])[:, 0]


def sums(model, rows):
    """[chosen, rejected] log-probabilities of the replies."""
    of = lambda which: torch.stack([token_log_probabilities(model, row["prompt"], row[which]).sum() for row in rows])
    return of("chosen"), of("rejected")


def dpo(kind, beta, own, reference, lengths):
    """TRL's loss: each reply as one row, its whole log-probability on its first token."""
    n, width = len(own[0]), int(max(lengths[0].max(), lengths[1].max())) + 1
    mask = torch.zeros(2 * n, width, dtype=torch.long)
    log_probs = torch.zeros(2 * n, width - 1)
    for row, (log_p, length) in enumerate(zip(torch.cat(own), torch.cat(lengths))):
        mask[row, 1:1 + int(length)] = 1
        log_probs = log_probs + torch.nn.functional.one_hot(torch.tensor(row * (width - 1)), log_probs.numel()).view_as(log_probs) * log_p
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    inputs = dict(input_ids=torch.ones_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask,
                  ref_chosen_logps=reference[0], ref_rejected_logps=reference[1])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ALONE, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=beta, label_smoothing=0.0, use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1)
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    measured = trainer._metrics["train"]
    return loss, measured["rewards/margins"][0], measured["rewards/accuracies"][0]


def cpo(kind, beta, label_smoothing, gamma, chosen, rejected):
    trainer = SimpleNamespace(accelerator=ALONE, alpha=0.0, beta=beta, loss_type=kind, label_smoothing=label_smoothing, simpo_gamma=gamma)
    losses, own, other = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    return losses.mean(), (own - other).mean().item(), (own > other).float().mean().item()


def loss_of(case, own, reference, lengths):
    """Loss, margin and accuracy; ORPO's without its next-token loss."""
    kind, beta = case["objective"], case["beta"]
    means = [x / n for x, n in zip(own, lengths)]
    if "label_smoothing" in case:
        return cpo("sigmoid", beta, case["label_smoothing"], 0.0, own[0] - reference[0], own[1] - reference[1])
    if kind == "simpo":
        return cpo("simpo", beta, 0.0, case["simpo_gamma"], *means)
    if kind == "orpo":
        trainer = SimpleNamespace(accelerator=ALONE, beta=beta)
        losses, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
        return -losses.mean(), (chosen - rejected).mean().item(), (chosen > rejected).float().mean().item()
    return dpo({"dpo": "sigmoid"}.get(kind, kind), beta, own, reference, lengths)


def start(folder):
    model = LlamaForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval().requires_grad_(False)
    wrapped = PeftModel.from_pretrained(model, folder / "closeness/adapter/start", is_trainable=True).eval()
    return wrapped, [(n, p) for n, p in wrapped.named_parameters() if p.requires_grad]


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, trl=trl.__version__)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def fixed():
    """Losses and gradients of log-probabilities that no model gave."""
    values = dict(chosen=[-3.2, -14.5, -0.7, -22.0], rejected=[-4.1, -9.3, -6.6, -22.5],
                  ref_chosen=[-3.9, -13.0, -2.0, -20.0], ref_rejected=[-3.0, -11.0, -5.5, -24.0])
    lengths = dict(chosen=[3, 9, 2, 11], rejected=[5, 4, 6, 12])
    cases = {}
    for name, case in CASES.items():
        own = [torch.tensor(values[k], requires_grad=True) for k in ("chosen", "rejected")]
        reference = [torch.tensor(values[k]) for k in ("ref_chosen", "ref_rejected")]
        loss, margin, accuracy = loss_of(case, own, reference, [torch.tensor(lengths[k]) for k in ("chosen", "rejected")])
        loss.backward()
        weight = case["beta"] if case["objective"] == "orpo" else 1.0  # TRL's has its weight in it
        cases[name] = dict(loss=loss.item() / weight, margin=margin, accuracy=accuracy, gradient=[(x.grad / weight).tolist() for x in own])
    return dict(values=values, lengths=lengths, cases=cases)


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    rows = pairs()
    lengths = [torch.tensor([len(row[which]) for row in rows]) for which in ("chosen", "rejected")]
    found = dict(pairs=rows, lr=LR, cases={}, fixed=fixed())
    for name, case in CASES.items():
        wrapped, parameters = start(folder)
        with torch.no_grad():
            at_start = sums(wrapped, rows)
            with wrapped.disable_adapter():
                base = sums(wrapped, rows)
        reference = at_start if case.get("reference") == "start" else base
        optimizer = torch.optim.AdamW([p for _, p in parameters], lr=LR, weight_decay=0.0, foreach=False, fused=False)
        tensors, steps = {}, []
        for step in range(STEPS):
            optimizer.zero_grad()
            own = sums(wrapped, rows)
            loss, margin, accuracy = loss_of(case, own, reference, lengths)
            if case["objective"] == "orpo":
                loss = loss - own[0].sum() / lengths[0].sum()
            loss.backward()
            steps.append(dict(loss=loss.item(), margin=margin, accuracy=accuracy))
            if step == 0:
                tensors |= {f"grad.{n.replace('.default', '')}": p.grad.clone() for n, p in parameters}
            optimizer.step()
        tensors |= {f"final.{n.replace('.default', '')}": p.detach().clone() for n, p in parameters}
        save(tensors, out / f"{name}.safetensors")
        found["cases"][name] = dict(**case, steps=steps)
        print(name, steps[0], steps[-1])
    (out / "preferences.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
