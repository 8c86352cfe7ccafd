"""What PEFT computes with RoAd (road_1, road_2, road_4): tests/oracle/road.

writes: road
python: today
reads: families

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_road.py OUT_DIR TESTS_ORACLE_DIR

PEFT writes sets of module names in the order of their hashes, hence the seed. Reads tiny_llama, tiny_io.safetensors and families/llama_biases
of TESTS_ORACLE_DIR (default: OUT_DIR's parent). Per case NAME:
    NAME/            the adapter directory that PEFT writes at the start
    NAME.safetensors init.* (the start), grad.* of the loss at the start, final.* after 20 steps; PEFT's names without ".default".
                     logits, loss, labels, final_logits; merged.* = weights (and biases) of some projections after merge_and_unload at the
                     start, named as in the base model's file, and merged_logits
    road.json        NAME: model, lr, variant, group_size, fresh (what PEFT's own start holds), trajectory: 21 losses, before each of 20 AdamW
                     steps, and after the last
And one linear layer alone, layers.safetensors: CASE.{theta, alpha, R, weight, bias, x, y, merged_weight, merged_bias, grad.theta, grad.alpha,
grad.x} for each variant and group size; grad.* are of sum(y * c), c = CASE.c. CASE ending in _bf16: base layer and x in bf16, theta and alpha in f32.
Starts are random and far from the identity, so that no part of a method is multiplied by 0. Labels count after the usual shift by one.
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
from peft import RoadConfig, TaskType, get_peft_model
from peft.tuners.road.layer import Linear as RoadLinear
from peft.tuners.road.layer import _get_delta_weight
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

SEED = 20240901
STEPS = 20
LR = 1e-2
TASK = dict(task_type=TaskType.CAUSAL_LM)
FIVE = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]

# name: model, PEFT's configuration, modules whose merged weights are kept
CASES = {
    "road_1": ("tiny_llama", dict(variant="road_1", group_size=8, target_modules=FIVE),
               ["model.layers.0.self_attn.k_proj", "model.layers.2.self_attn.q_proj"]),
    "road_2": ("tiny_llama", dict(variant="road_2", group_size=8, target_modules=FIVE),
               ["model.layers.0.self_attn.k_proj", "model.layers.3.mlp.down_proj"]),
    "road_4": ("tiny_llama", dict(variant="road_4", group_size=8, target_modules=FIVE),
               ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.o_proj"]),
    "road_2_pattern": ("tiny_llama", dict(
        variant="road_2", group_size=32, target_modules=r".*\.[13]\.(self_attn\.k|mlp\.up)_proj"),
        ["model.layers.1.self_attn.k_proj"]),
    "road_1_bias": ("families/llama_biases", dict(
        variant="road_1", group_size=16, target_modules=["k_proj", "o_proj", "up_proj"]),
        ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj"]),
    "road_4_bias": ("families/llama_biases", dict(
        variant="road_4", group_size=2, target_modules=["q_proj", "v_proj", "down_proj"]),
        ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"]),
}


def start(name, shape, generator):
    """Numbers around where the method starts, and far enough from it."""
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.3 * noise if "road_alpha" in name else 0.6 * noise


def file_name(name):
    """A parameter's name in PEFT's file."""
    return name.replace(".default", "")


def batch(folder, model):
    if model == "tiny_llama":
        io = load_file(folder / "tiny_io.safetensors")
        return io["input_ids"], io["attention_mask"], io["labels"], io["base_logits"]
    io = load_file(folder / model / "io.safetensors")
    ids, mask = io["input_ids"], io["attention_mask"]
    is_response = (torch.arange(ids.shape[1])[None] >= 4) & mask.bool()
    return ids, mask, torch.where(is_response, ids, -100), io["logits"]


def base_model(folder, name):
    model = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    model.name_or_path = model.config._name_or_path = Path(name).name
    return model.requires_grad_(False)


def trainable(wrapped):
    return [(n, p) for n, p in wrapped.named_parameters() if p.requires_grad]


def save(tensors, file, seed):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, seed=str(seed))
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(data[:8] + header.ljust(end - 8) + data[end:])
    file.chmod(0o644)


def run(out, folder, name, seed):
    model_name, options, kept = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = base_model(folder, model_name)
    ids, mask, labels, recorded = batch(folder, model_name)
    own = mask.bool()
    with torch.no_grad():
        base_logits = model(input_ids=ids, attention_mask=mask).logits
    # the base model is what the other recordings were made with
    assert (base_logits - recorded)[own].abs().max() < 2e-5, "the base model's logits are not the recorded ones"
    wrapped = get_peft_model(model, RoadConfig(**options, **TASK)).eval()
    parameters = trainable(wrapped)
    with torch.no_grad():
        fresh_logits = wrapped(input_ids=ids, attention_mask=mask).logits
        values = lambda key: sorted({x for n, p in parameters if key in n for x in p.flatten().tolist()})
        fresh = dict(road_theta=values("road_theta"), road_alpha=values("road_alpha"),
                     logits_off_base=(fresh_logits - base_logits)[own].abs().max().item(),
                     trainable=sum(p.numel() for _, p in parameters))
        for n, p in parameters:
            p.copy_(start(n, p.shape, generator))
    tensors = {"labels": labels}
    tensors |= {f"init.{file_name(n)}": p.detach().clone() for n, p in parameters}
    shutil.rmtree(out / name, ignore_errors=True)
    wrapped.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    (out / name / "adapter_model.safetensors").chmod(0o644)
    saved = load_file(out / name / "adapter_model.safetensors")
    assert {f"init.{k}" for k in saved} == {k for k in tensors if k.startswith("init.")}
    assert all(torch.equal(tensors[f"init.{k}"], v) for k, v in saved.items())

    def forward():
        return wrapped(input_ids=ids, attention_mask=mask, labels=labels)

    result = forward()
    result.loss.backward()
    for n, p in parameters:
        assert p.grad.abs().max() > 1e-6, f"{n} has no gradient"
        tensors[f"grad.{file_name(n)}"] = p.grad.clone()
    tensors |= {"logits": result.logits.detach().clone(), "loss": result.loss.detach().reshape(1)}
    assert (tensors["logits"] - base_logits)[own].abs().max() > 1

    optimizer = torch.optim.AdamW([p for _, p in parameters], lr=LR, weight_decay=0.0, foreach=False, fused=False)
    trajectory = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = forward().loss
        trajectory.append(loss.item())
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        last = forward()
    trajectory.append(last.loss.item())
    tensors["final_logits"] = last.logits.clone()
    tensors |= {f"final.{file_name(n)}": p.detach().clone() for n, p in parameters}

    # merged at the start, from the directory as another program would read it
    merged = peft.PeftModel.from_pretrained(base_model(folder, model_name), out / name).merge_and_unload(safe_merge=True)
    with torch.no_grad():
        tensors["merged_logits"] = merged(input_ids=ids, attention_mask=mask).logits
    off = (tensors["merged_logits"] - tensors["logits"])[own].abs().max().item()
    assert off < 5e-5, off
    state = merged.state_dict()
    for module in kept:
        for key in ("weight", "bias"):
            if f"{module}.{key}" in state:
                tensors[f"merged.{module}.{key}"] = state[f"{module}.{key}"].clone()
    save(tensors, out / f"{name}.safetensors", seed)
    print(f"{name}: {trajectory[0]:.4f} -> {trajectory[-1]:.4f}; fresh {fresh}; merged off by {off:.1e}")
    return dict(model=model_name, lr=LR, variant=options["variant"], group_size=options["group_size"], fresh=fresh, trajectory=trajectory)


def layers(out, seed):
    """One projection of 5 numbers to 12, with a bias."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for variant in ["road_1", "road_2", "road_4"]:
        for group_size, dtype in [(2, torch.float32), (4, torch.float32), (12, torch.float32), (4, torch.bfloat16)]:
            case = f"{variant}.group_{group_size}" + ("_bf16" if dtype == torch.bfloat16 else "")
            linear = torch.nn.Linear(5, 12).to(dtype).requires_grad_(False)
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
            layer = RoadLinear(linear, "default", RoadConfig(variant=variant, group_size=group_size))
            theta, alpha = (d["default"] for d in (layer.road_theta, layer.road_alpha))
            theta.data = start("road_theta", theta.shape, generator)  # f32 also beside bf16, as get_peft_model makes them
            alpha.data = start("road_alpha", alpha.shape, generator)
            x = torch.randn((2, 3, 5), generator=generator).to(dtype).requires_grad_()
            c = torch.randn((2, 3, 12), generator=generator)
            y = layer(x)
            assert y.dtype == dtype
            (y.float() * c).sum().backward()
            kept = dict(theta=theta, alpha=alpha, R=_get_delta_weight(variant, group_size, theta.data, alpha.data), x=x, y=y, c=c,
                        weight=linear.weight.clone(), bias=linear.bias.clone())
            kept |= {"grad.theta": theta.grad, "grad.alpha": alpha.grad, "grad.x": x.grad}
            layer.merge(safe_merge=True)
            kept |= dict(merged_weight=linear.weight, merged_bias=linear.bias)
            tensors |= {f"{case}.{k}": v.detach().clone() for k, v in kept.items()}
    save(tensors, out / "layers.safetensors", seed)


def main():
    assert os.environ.get("PYTHONHASHSEED") == "0", "set PYTHONHASHSEED=0"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else out.parent
    out.mkdir(parents=True, exist_ok=True)
    summary = {name: run(out, folder, name, SEED + i) for i, name in enumerate(CASES)}
    layers(out, SEED + 100)
    (out / "road.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
