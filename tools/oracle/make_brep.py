"""BREP with a bounded bias, in plain torch: tests/oracle/brep.

writes: brep
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_brep.py OUT_DIR [TESTS_ORACLE_DIR]

Liang et al. 2025 (arXiv:2511.10707) train a scale l and a bias b of what a projection gives, y <- l*y + b, as LiangThree/BREP has it. The bound is not
theirs: b min(1, t/|b|) in place of b. Reads tiny_llama and tiny_io.safetensors.
    brep.json        CASE: options, lr, trajectory: 21 losses, before each of 20 AdamW steps, and after the last
    CASE.safetensors init.*, grad.* of the loss at the start, logits, final.*
Some biases start within the bound and some beyond it.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

STEPS = 20
LR = 1e-2
CASES = {
    "up": dict(max_bias_norm=1.5, layers=[0, 1, 3]),
    "two": dict(max_bias_norm=0.8, layers=[1, 2], components=["q_proj", "down_proj"]),
}


def module_of(model, layer, component):
    block = model.model.layers[layer]
    return getattr(block.self_attn if component in ("q_proj", "k_proj", "v_proj", "o_proj") else block.mlp, component)


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
    io = load_file(folder / "tiny_io.safetensors")
    found = {}
    for seed, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        bound, trained, handles = case["max_bias_norm"], {}, []
        for at, (layer, component) in enumerate((l, c) for l in case["layers"] for c in case.get("components", ["up_proj"])):
            module = module_of(model, layer, component)
            scale = torch.nn.Parameter(1 + 0.2 * torch.randn(module.out_features))
            bias = torch.randn(module.out_features)
            bias = torch.nn.Parameter(bias / bias.norm() * bound * (0.6 if at % 2 else 1.7))
            trained[f"layers.{layer}.{component}.scale"], trained[f"layers.{layer}.{component}.bias"] = scale, bias

            def hook(module, inputs, y, scale=scale, bias=bias):
                return y * scale + bias * torch.clamp(bound / bias.norm(), max=1.0)

            handles.append(module.register_forward_hook(hook))
        tensors = {f"init.{k}": v.detach().clone() for k, v in trained.items()}

        def forward():
            return model(input_ids=io["input_ids"], attention_mask=io["attention_mask"], labels=io["labels"])

        result = forward()
        result.loss.backward()
        tensors |= {f"grad.{k}": v.grad.clone() for k, v in trained.items()}
        tensors["logits"] = result.logits.detach().clone()
        optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0, foreach=False, fused=False)
        trajectory = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = forward().loss
            trajectory.append(loss.item())
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            trajectory.append(forward().loss.item())
        tensors |= {f"final.{k}": v.detach().clone() for k, v in trained.items()}
        for handle in handles:
            handle.remove()
        save(tensors, out / f"{name}.safetensors")
        found[name] = dict(options=case, lr=LR, trajectory=trajectory)
        print(name, trajectory[0], trajectory[-1])
    (out / "brep.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
