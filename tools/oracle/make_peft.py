"""What PEFT computes with methods and options beside those of make_oracle.py, and plain torch where PEFT lacks the method:
tests/oracle/peft_more.

writes: peft_more
python: reference
reads: families

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.49.0 peft==0.14.0 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python tools/oracle/make_peft.py tests/oracle/peft_more

PEFT writes sets of module names in the order of their hashes, hence the seed. Reads tests/oracle/tiny_llama, tiny_io.safetensors and families/llama_biases beside the output directory. Per case NAME:
    NAME/            the adapter directory that PEFT writes at the start (not for RED and bottleneck adapters)
    NAME.safetensors init.* (the start), grad.* of the loss at the start, logits, labels; PEFT's names without ".default"
    peft_more.json   model, rate, options, 21 losses: before each of 20 AdamW steps, and after the last
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
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

SEED = 20240815
STEPS = 20
TASK = dict(task_type=TaskType.CAUSAL_LM)

# name: model, learning rate, and PEFT's configuration
PEFT_CASES = {
    "dora": ("tiny_llama", 5e-3, LoraConfig(
        r=4, lora_alpha=6, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"], **TASK)),
    "dora_bias": ("families/llama_biases", 5e-3, LoraConfig(
        r=3, lora_alpha=6, use_dora=True, target_modules=["k_proj", "o_proj", "up_proj"], **TASK)),
    "rslora": ("tiny_llama", 5e-3, LoraConfig(
        r=4, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "o_proj", "gate_proj"], layers_to_transform=[0, 2],
        rank_pattern={"layers.2.self_attn.q_proj": 3}, alpha_pattern={"o_proj": 5}, **TASK)),
    "lora_pattern": ("tiny_llama", 5e-3, LoraConfig(
        r=2, lora_alpha=3, target_modules=r".*\.[13]\.(self_attn\.k|mlp\.up)_proj", **TASK)),
    "ia3": ("tiny_llama", 2e-2, IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK)),
    "ia3_bias": ("families/llama_biases", 2e-2, IA3Config(
        target_modules=["q_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK)),
    "prefix_projection": ("tiny_llama", 1e-2, PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=24, **TASK)),
}

# name: class, learning rate, options
TORCH_CASES = {
    "red_mlp": ("Red", 1e-2, dict(layers=[0, 2, 3], components=["mlp_output"])),
    "red_block": ("Red", 1e-2, dict(layers=[1, 2], components=["block_output"])),
    "series": ("Bottleneck", 5e-3, dict(
        layers=[1, 3], components=["attention_output", "mlp_output"], bottleneck_size=6, act_fn="relu", parallel=False)),
    "parallel": ("Bottleneck", 5e-3, dict(
        layers=[0, 3], components=["attention_output", "mlp_output"], bottleneck_size=6, act_fn="tanh", parallel=True)),
}


class Red(torch.nn.Module):
    """h ⊙ scale + bias at every token."""

    def __init__(self, model, layers, components):
        super().__init__()
        self.tensors = torch.nn.ParameterDict()
        d = model.config.hidden_size
        for layer in layers:
            for component in components:
                name = f"layers.{layer}.{component}"
                scale = self.tensors[f"{name}.scale".replace(".", "/")] = torch.nn.Parameter(torch.empty(d))
                bias = self.tensors[f"{name}.bias".replace(".", "/")] = torch.nn.Parameter(torch.empty(d))
                block = model.model.layers[layer]
                module = block.mlp if component == "mlp_output" else block
                module.register_forward_hook(
                    lambda _, args, out, scale=scale, bias=bias:
                        (out[0] * scale + bias, *out[1:]) if isinstance(out, tuple) else out * scale + bias)


class Bottleneck(torch.nn.Module):
    """f + up(σ(down(x))): x is f itself in series, the branch's input in parallel."""

    def __init__(self, model, layers, components, bottleneck_size, act_fn, parallel):
        super().__init__()
        self.tensors = torch.nn.ParameterDict()
        d, m = model.config.hidden_size, bottleneck_size
        act = getattr(torch, act_fn)
        for layer in layers:
            for component in components:
                p = {}
                for tensor, shape in {"down.weight": (m, d), "down.bias": (m,), "up.weight": (d, m), "up.bias": (d,)}.items():
                    p[tensor] = torch.nn.Parameter(torch.empty(shape))
                    self.tensors[f"layers.{layer}.{component}.{tensor}".replace(".", "/")] = p[tensor]
                block = model.model.layers[layer]
                module = block.mlp if component == "mlp_output" else block.self_attn

                def hook(_, args, kwargs, out, p=p):
                    branch = out[0] if isinstance(out, tuple) else out
                    x = (args[0] if args else kwargs["hidden_states"]) if parallel else branch
                    inner = act(x @ p["down.weight"].T + p["down.bias"])
                    edited = branch + inner @ p["up.weight"].T + p["up.bias"]
                    return (edited, *out[1:]) if isinstance(out, tuple) else edited

                module.register_forward_hook(hook, with_kwargs=True)


def start(name, shape, generator):
    """Numbers around where the method starts, and far enough from it."""
    noise = torch.randn(shape, generator=generator)
    if "magnitude" in name or "ia3_l" in name or name.endswith("scale"):
        return 1 + 0.3 * noise
    return 0.2 * noise


def file_name(name):
    """A parameter's name in PEFT's file."""
    name = name.replace(".default", "").replace("prompt_encoder.", "").replace("/", ".").removeprefix("tensors.")
    return name.removesuffix(".weight") if name.endswith("magnitude_vector.weight") else name


def batch(folder, model):
    if model == "tiny_llama":
        io = load_file(folder / "tiny_io.safetensors")
        return io["input_ids"], io["attention_mask"], io["labels"]
    io = load_file(folder / model / "io.safetensors")
    ids, mask = io["input_ids"], io["attention_mask"]
    is_response = (torch.arange(ids.shape[1])[None] >= 4) & mask.bool()
    return ids, mask, torch.where(is_response, ids, -100)


def run(out, name, model_name, lr, seed, wrap):
    folder = out.parent
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(folder / model_name, torch_dtype=torch.float32).eval()
    model.name_or_path = model.config._name_or_path = Path(model_name).name
    model.requires_grad_(False)
    wrapped, trainable = wrap(model)
    wrapped.eval()  # no dropout
    with torch.no_grad():
        for parameter_name, parameter in trainable:
            base = parameter.clone() if "magnitude" in parameter_name else 1
            parameter.copy_(start(parameter_name, parameter.shape, generator) * base)
    ids, mask, labels = batch(folder, model_name)
    tensors = {"labels": labels}
    tensors |= {f"init.{file_name(n)}": p.detach().clone() for n, p in trainable}
    if isinstance(wrapped, PeftModel):
        shutil.rmtree(out / name, ignore_errors=True)
        wrapped.save_pretrained(out / name)
        (out / name / "README.md").unlink(missing_ok=True)

    def forward():
        return wrapped(input_ids=ids, attention_mask=mask, labels=labels)

    result = forward()
    result.loss.backward()
    tensors |= {f"grad.{file_name(n)}": p.grad.clone() for n, p in trainable}
    tensors["logits"] = result.logits.detach().clone()
    parameters = [p for _, p in trainable]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, foreach=False, fused=False)
    trajectory = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = forward().loss
        trajectory.append(loss.item())
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        trajectory.append(forward().loss.item())
    metadata = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, seed=str(seed))
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / f"{name}.safetensors", metadata)
    print(f"{name}: {trajectory[0]:.4f} -> {trajectory[-1]:.4f}")
    return dict(model=model_name, lr=lr, trajectory=trajectory)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    summary = {}
    for i, (name, (model, lr, config)) in enumerate(PEFT_CASES.items()):
        def wrap(model, config=config):
            wrapped = get_peft_model(model, config)
            return wrapped, [(n, p) for n, p in wrapped.named_parameters() if p.requires_grad]
        summary[name] = run(out, name, model, lr, SEED + i, wrap)
    for i, (name, (kind, lr, options)) in enumerate(TORCH_CASES.items()):
        def wrap(model, kind=kind, options=options):
            adapter = globals()[kind](model, **options)
            return model, list(adapter.named_parameters())
        summary[name] = run(out, name, "tiny_llama", lr, SEED + 100 + i, wrap) | options
    (out / "peft_more.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
