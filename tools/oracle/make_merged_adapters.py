"""What PEFT's add_weighted_adapter makes of LoRAs: tests/oracle/merged_adapters.

writes: merged_adapters
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    venv/bin/python tools/oracle/make_merged_adapters.py OUT_DIR

Reads tiny_llama, tiny_io.safetensors and the adapters in peft and peft_more of tests/oracle. Writes
    merged_adapters.json         CASE: adapters, weights, combination_type, svd_rank
    merged_adapters.safetensors  CASE: logits [b, t, v] of the batch of tiny_io
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

CASES = {
    "cat": dict(adapters=["peft/lora_qv", "peft/lora_all"], weights=[0.7, 1.3], combination_type="cat", svd_rank=None),
    "cat_patterns": dict(adapters=["peft/lora_all", "peft_more/rslora"], weights=[0.5, 1.0], combination_type="cat", svd_rank=None),
    "svd": dict(adapters=["peft/lora_qv", "peft/lora_all"], weights=[0.7, 1.3], combination_type="svd", svd_rank=3),
}


def logits(folder, adapters, weights, combination_type, svd_rank):
    model = LlamaForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval()
    wrapped = PeftModel.from_pretrained(model, folder / adapters[0], adapter_name="0")
    for i, adapter in enumerate(adapters[1:], 1):
        wrapped.load_adapter(folder / adapter, adapter_name=str(i))
    names = [str(i) for i in range(len(adapters))]
    wrapped.add_weighted_adapter(names, weights, "merged", combination_type=combination_type, svd_rank=svd_rank)
    wrapped.set_adapter("merged")
    io = load_file(folder / "tiny_io.safetensors")
    with torch.no_grad():
        return wrapped(input_ids=io["input_ids"], attention_mask=io["attention_mask"]).logits


# the inputs: other generators write them
ORACLE = Path(__file__).resolve().parents[2] / "tests/oracle"


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    found = {name: logits(ORACLE, **case).contiguous() for name, case in CASES.items()}
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    save_file(found, out / "merged_adapters.safetensors", metadata)
    (out / "merged_adapters.json").write_text(json.dumps(CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
