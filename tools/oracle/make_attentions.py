"""The attention weights that transformers gives with output_attentions: tests/oracle/attentions.

writes: attentions
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    venv/bin/python tools/oracle/make_attentions.py OUT_DIR

Reads tiny_llama, more_families/gemma2 (windows, scores brought into a range) and encoders/modernbert (windows to both sides) of
tests/oracle, and the LoRA peft/lora_all on tiny_llama. Attention is computed eagerly. Writes
attentions.safetensors: input_ids [1, t], and CASE.{layer} [n_h, t, t] of llama, llama_lora, gemma2 and modernbert.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

LENGTH = 21


def attentions(model, ids):
    with torch.no_grad():
        found = model(input_ids=ids, output_attentions=True).attentions
    return [layer[0].float().contiguous() for layer in found]


# the inputs: other generators write them
ORACLE = Path(__file__).resolve().parents[2] / "tests/oracle"


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    ids = (torch.arange(LENGTH)[None] * 7 + 3) % 61 + 2
    eager = dict(attn_implementation="eager", dtype=torch.float32)
    models = {
        "llama": AutoModelForCausalLM.from_pretrained(ORACLE / "tiny_llama", **eager),
        "gemma2": AutoModelForCausalLM.from_pretrained(ORACLE / "more_families/gemma2", **eager),
        "modernbert": AutoModel.from_pretrained(ORACLE / "encoders/modernbert", **eager),
    }
    tensors = {"input_ids": ids}
    for name, model in models.items():
        tensors |= {f"{name}.{i}": layer for i, layer in enumerate(attentions(model.eval(), ids))}
    lora = PeftModel.from_pretrained(models["llama"], ORACLE / "peft/lora_all").eval()
    tensors |= {f"llama_lora.{i}": layer for i, layer in enumerate(attentions(lora, ids))}
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    save_file(tensors, out / "attentions.safetensors", metadata)


if __name__ == "__main__":
    main()
