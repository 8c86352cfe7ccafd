"""Reads adapters and merged models with PEFT and transformers, and compares their logits with the recorded ones.

    python check_peft.py tests/oracle DIR

Every folder MODEL/METHOD of DIR is an adapter directory for tests/oracle/interop/models/MODEL with logits.safetensors beside it: row0, row1, …
`[t, v]`, the logits of the rows of tests/oracle/interop/input.json, without virtual tokens. Where it holds a folder `merged`, that is a
model with the adapter in its weights, of the same logits. Needs what make_interop.py needs. Exits 1 if one differs.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 2e-5  # f32, the same sums in another order


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def difference(model, rows, own):
    worst = 0.0
    for i, row in enumerate(rows):
        ids = torch.tensor([row])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row):]
        assert logits.shape == own[f"row{i}"].shape
        worst = max(worst, (logits - own[f"row{i}"]).abs().max().item())
    return worst


def main():
    oracle, folder = map(Path, sys.argv[1:])
    rows = json.loads((oracle / "interop/input.json").read_text())["input_ids"]
    worst, adapters = 0.0, sorted(path.parent for path in folder.glob("*/*/adapter_config.json"))
    assert adapters
    for adapter in adapters:
        own = load_file(adapter / "logits.safetensors")
        found = {"adapter": difference(PeftModel.from_pretrained(opened(oracle / "interop/models" / adapter.parent.name), adapter).eval(), rows, own)}
        if (adapter / "merged").is_dir():
            found["merged"] = difference(opened(adapter / "merged"), rows, own)
        print(f"{adapter.parent.name}/{adapter.name}:", ", ".join(f"{what} {off:.1e}" for what, off in found.items()))
        worst = max(worst, *found.values())
    sys.exit(0 if worst <= TOLERANCE else f"off by {worst:.1e}, at most {TOLERANCE:.0e} is rounding")


if __name__ == "__main__":
    main()
