"""Reads adapter directories with PEFT and compares its logits with the recorded ones.

    python check_peft.py tests/oracle DIR

Every folder of DIR is an adapter directory for tests/oracle/tiny_llama with logits.safetensors beside it: row0, row1, … `[t, v]`, the
logits of the rows of tests/oracle/tiny_io.safetensors, virtual tokens included. Needs what make_peft.py needs. Exits 1 if one differs.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

TOLERANCE = 2e-5  # f32, the same sums in another order


@torch.no_grad()
def main():
    oracle, folder = map(Path, sys.argv[1:])
    io = load_file(oracle / "tiny_io.safetensors")
    worst = 0.0
    for adapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        base = LlamaForCausalLM.from_pretrained(oracle / "tiny_llama", torch_dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapter).eval()
        logits = model(input_ids=io["input_ids"], attention_mask=io["attention_mask"]).logits
        own = load_file(adapter / "logits.safetensors")
        errors = [(logits[i, : len(own[f"row{i}"])] - own[f"row{i}"]).abs().max().item() for i in range(len(logits))]
        print(f"{adapter.name}: {max(errors):.1e}")
        worst = max(worst, *errors)
    sys.exit(0 if worst <= TOLERANCE else f"off by {worst:.1e}, at most {TOLERANCE:.0e} is rounding")


if __name__ == "__main__":
    main()
