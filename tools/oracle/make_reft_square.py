"""A rotation as large as the hidden state, saved by pyreft: tests/oracle/reft_square.

writes: reft_square
python: reference

    python make_reft_square.py OUT_DIR  (torch 2.11, transformers 4.49, pyreft 0.1.0, pyvene 0.1.8)

torch keeps a square matrix orthogonal by another map than a tall one. Reads tiny_llama and tiny_io.safetensors of tests/oracle. Writes
    saved               a directory of ReftModel.save: DireftIntervention of rank 64 at layer 1, all its numbers moved
    logits.safetensors  logits [b, t, v] of the batch of tiny_io, positions f2+l2, one intervention for both ends
"""

import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pyreft
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

ORACLE = Path(__file__).resolve().parents[2] / "tests" / "oracle"
SIZE, LAYER = 64, 1


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    torch.manual_seed(64)
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model = LlamaForCausalLM.from_pretrained(ORACLE / "tiny_llama", torch_dtype=torch.float32).eval()
    intervention = pyreft.DireftIntervention(embed_dim=SIZE, low_rank_dimension=SIZE, dtype=torch.float32)
    place = {"layer": LAYER, "component": "block_output", "low_rank_dimension": SIZE, "intervention": intervention}
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=[place]))
    for parameter in intervention.parameters():
        parameter += 0.1 * torch.randn(parameter.shape)
    io = load_file(ORACLE / "tiny_io.safetensors")
    locations = io["locations_shared"][:, :1].permute(1, 0, 2).tolist()
    batch = {"input_ids": io["input_ids"], "attention_mask": io["attention_mask"]}
    _, output = reft(batch, unit_locations={"sources->base": (None, locations)})
    reft.save(str(out / "saved"))
    save_file({"logits": output.logits.contiguous()}, out / "logits.safetensors")


if __name__ == "__main__":
    main()
