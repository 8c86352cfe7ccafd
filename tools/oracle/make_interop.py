"""What transformers and PEFT compute from files as current versions write them: tests/oracle/interop.

writes: interop
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python make_interop.py OUT_DIR

    models/NAME/              small models with random weights, as save_pretrained writes them
    adapters/NAME/            adapters of the model of the same beginning, likewise
    cases.json                CASE: model; edit of its config.json (null: the field is removed); tensors, what is done to its weights
                              (rename: [from, to] of name prefixes; drop: names; add: {name: [shape, value]}); adapter; edit of its adapter_config.json
    truth.safetensors         CASE: logits [b, t, v] of input_ids; logits at padding are 0
    input.json                input_ids, rows of unequal length
Every truth is computed by from_pretrained on a directory that was edited as the case says.
"""

import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, RoadConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

SEED = 20261126
SIZES = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, attn_implementation="eager")
MODELS = {
    "llama": LlamaConfig(**SIZES, rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama_biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=4, head_dim=12),
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}
ROWS = [[3, 41, 7, 19, 23, 5, 11, 2, 29, 31, 17], [9, 1, 44, 8, 13, 26], [37, 4]]

LORA = dict(task_type=TaskType.CAUSAL_LM, r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"])
ADAPTERS = {
    "llama-lora": LoraConfig(**LORA),
    "llama-lora_ranks": LoraConfig(**LORA, use_rslora=True, rank_pattern={"model.layers.1.self_attn.q_proj": 5, "^model.layers.2.mlp.down_proj": 2},
                                   alpha_pattern={r"model\.layers\.\d+\.self_attn\.v_proj": 9, "down_proj": 1}),
    "llama-lora_layers": LoraConfig(**LORA, layers_to_transform=[0, 2], layers_pattern=["blocks", "layers"]),
    "llama-lora_one_layer": LoraConfig(**LORA, layers_to_transform=1, layers_pattern="layers"),
    "llama-lora_excluding": LoraConfig(**LORA, exclude_modules=r".*\.1\.mlp\..*"),
    "llama-lora_excluding_names": LoraConfig(**LORA, exclude_modules=["v_proj", "model.layers.0.self_attn.q_proj"]),
    "llama-lora_looking_ahead": LoraConfig(**{**LORA, "target_modules": r"model\.layers\.(?!0\.)\d+\.(self_attn|mlp)\.(?:q|up)_proj"}),
    "llama-lora_mica": LoraConfig(**LORA, init_lora_weights="mica"),
    "llama-lora_orthogonal": LoraConfig(**{**LORA, "r": 4}, init_lora_weights="orthogonal"),
    "llama-dora": LoraConfig(**LORA, use_dora=True, rank_pattern={"q_proj": 1}),
    "llama-lora_classifier": LoraConfig(**{**LORA, "task_type": TaskType.SEQ_CLS}),
    "llama-ia3": IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
                           exclude_modules=["model.layers.1.mlp.down_proj"]),
    "llama-road": RoadConfig(task_type=TaskType.CAUSAL_LM, variant="road_2", group_size=8, target_modules=["o_proj", "up_proj"]),
    "llama-prefix": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
    "llama-prompt": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
    "llama_biases-lora": LoraConfig(**LORA),
    "llama_tied-lora": LoraConfig(**LORA, ensure_weight_tying=True),
    "mistral-lora": LoraConfig(**LORA),
    "mistral-prefix": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, init_weights="zero"),
    "qwen2-lora": LoraConfig(**LORA),
    "qwen3-lora": LoraConfig(**LORA),
    "qwen3-prefix": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
}

LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
CASES = {
    # what a family has, and what it takes where the file says nothing
    "llama": dict(model="llama"),
    "llama_tied": dict(model="llama_tied"),
    "llama_biases": dict(model="llama_biases"),
    "mistral": dict(model="mistral"),
    "qwen2": dict(model="qwen2"),
    "qwen3": dict(model="qwen3"),
    "llama_no_defaults": dict(model="llama", edit=dict(rms_norm_eps=None, rope_parameters=None, head_dim=None, hidden_act=None,
                              attention_bias=None, mlp_bias=None, tie_word_embeddings=None, attention_dropout=None)),
    "llama_kv_heads_missing": dict(model="llama", edit=dict(num_key_value_heads=None), tensors=dict(repeat_kv=2)),
    "mistral_window_missing": dict(model="mistral", edit=dict(sliding_window=None, max_position_embeddings=None)),
    "qwen2_window_off": dict(model="qwen2", edit=dict(use_sliding_window=False, layer_types=None)),
    "qwen2_layer_types": dict(model="qwen2", edit=dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "llama_window": dict(model="llama", edit=dict(sliding_window=2)),
    "mistral_bias_ignored": dict(model="mistral", edit=dict(attention_bias=True, mlp_bias=True)),
    # RoPE
    "rope_theta_alone": dict(model="llama", edit=dict(rope_parameters=None, rope_theta=77.0)),
    "rope_theta_in_two_places": dict(model="llama", edit=dict(rope_theta=77.0)),
    "rope_theta_in_three_places": dict(model="llama", edit=dict(
        rope_theta=77.0, rope_scaling=dict(rope_type="linear", factor=3.0, rope_theta=31.0))),
    "rope_scaling_before_parameters": dict(model="llama", edit=dict(rope_scaling=dict(type="linear", factor=2.0), rope_theta=55.0)),
    "rope_parameters_without_theta": dict(model="llama", edit=dict(rope_parameters=dict(rope_type="linear", factor=2.0), rope_theta=66.0)),
    "llama3_without_original": dict(model="llama", edit=dict(rope_parameters=dict(LLAMA3, rope_theta=400.0))),
    "llama3_with_original": dict(model="llama", edit=dict(rope_parameters=dict(LLAMA3, rope_theta=400.0, original_max_position_embeddings=16))),
    "llama3_original_beside": dict(model="llama", edit=dict(
        rope_parameters=None, rope_theta=400.0, rope_scaling=LLAMA3, original_max_position_embeddings=24)),
    # weights
    "tied_with_a_head_of_its_own": dict(model="llama", edit=dict(tie_word_embeddings=True)),
    "tied_with_the_same_head": dict(model="llama_tied", tensors=dict(copy=[["model.embed_tokens.weight", "lm_head.weight"]])),
    "only_the_head_of_a_tied_pair": dict(model="llama_tied", tensors=dict(rename=[["model.embed_tokens.weight", "lm_head.weight"]])),
    "without_the_prefix_model": dict(model="llama_tied", tensors=dict(rename=[["model.", ""]])),
    "with_buffers": dict(model="llama", tensors=dict(add={
        "model.layers.0.self_attn.rotary_emb.inv_freq": [[4], 0.5], "model.layers.1.self_attn.rotary_emb.cos_cached": [[1, 1, 8, 8], 0.5]})),
    # adapters
    **{name: dict(model=name.split("-")[0], adapter=name) for name in ADAPTERS},
    "lora_no_layers": dict(model="llama", adapter="llama-lora", adapter_edit=dict(layers_to_transform=[])),
    "lora_targets_of_nothing": dict(model="llama", adapter="llama-lora", adapter_edit=dict(target_modules=["down_proj", "c_attn", "q_proj", "v_proj"])),
    "lora_bias_all": dict(model="llama", adapter="llama-lora", adapter_edit=dict(bias="all")),
    "lora_bias_lora_only": dict(model="llama", adapter="llama-lora", adapter_edit=dict(bias="lora_only")),
    "lora_eva": dict(model="llama", adapter="llama-lora", adapter_edit=dict(init_lora_weights="gaussian", eva_config=dict(rho=2.0))),
    "lora_velora": dict(model="llama", adapter="llama-lora", adapter_edit=dict(velora_config=dict(num_groups=8))),
    "lora_ga": dict(model="llama", adapter="llama-lora", adapter_edit=dict(init_lora_weights="lora_ga", lora_ga_config=None)),
    "lora_any_task": dict(model="llama", adapter="llama-lora", adapter_edit=dict(task_type="FEATURE_EXTRACTION")),
    "lora_alpha_by_a_whole_name": dict(model="llama", adapter="llama-lora", adapter_edit=dict(alpha_pattern={"model.layers.0.self_attn.q_proj": 20})),
    "lora_alpha_from_the_start": dict(model="llama", adapter="llama-lora", adapter_edit=dict(alpha_pattern={r"^model\.layers\.[12]\.mlp\.down_proj": 20})),
    "lora_alpha_first_match": dict(model="llama", adapter="llama-lora", adapter_edit=dict(alpha_pattern={"layers.1.self_attn.v_proj": 30, "v_proj": 11})),
}


def edited(file, edit):
    """Removes fields that are null in the edit, where the file has them, and sets the others."""
    data = json.loads(file.read_text())
    for name, value in edit.items():
        if value is None:
            data.pop(name, None)
        else:
            data[name] = value
    file.write_text(json.dumps(data, indent=2) + "\n")


def changed(file, what):
    tensors = load_file(file)
    for old, new in what.get("rename", []):
        tensors = {new + name[len(old):] if name.startswith(old) else name: t for name, t in tensors.items()}
    for old, new in what.get("copy", []):
        tensors[new] = tensors[old].clone()
    if n := what.get("repeat_kv"):
        for name in [name for name in tensors if "k_proj" in name or "v_proj" in name]:
            tensors[name] = tensors[name].repeat(n, 1)
    for name, (shape, value) in what.get("add", {}).items():
        tensors[name] = torch.full(shape, value)
    save(tensors, file)


def save(tensors, file):
    """The same bytes in every run: safetensors writes the metadata in no fixed order."""
    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, file, {"format": "pt"})
    file.chmod(0o644)


def disturbed(parameters, generator):
    with torch.no_grad():
        for name, p in parameters:
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name or "ia3_l" in name or "magnitude" in name or "road_alpha" in name:
                p.copy_(p * (1 + 0.3 * noise))
            else:
                p.copy_(0.25 * noise)


def make_models(out, generator):
    for name, config in MODELS.items():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        disturbed(model.named_parameters(), generator)
        model.save_pretrained(out / "models" / name)
        (out / "models" / name / "generation_config.json").unlink(missing_ok=True)
        save(load_file(out / "models" / name / "model.safetensors"), out / "models" / name / "model.safetensors")


def make_adapters(out, generator):
    for name, config in ADAPTERS.items():
        base = name.split("-")[0]
        model = AutoModelForCausalLM.from_pretrained(out / "models" / base, attn_implementation="eager").eval()
        model.config._name_or_path = model.name_or_path = base
        wrapped = get_peft_model(model, copy.deepcopy(config))
        disturbed([(n, p) for n, p in wrapped.named_parameters() if p.requires_grad], generator)
        wrapped.save_pretrained(out / "adapters" / name)
        (out / "adapters" / name / "README.md").unlink(missing_ok=True)
        file = out / "adapters" / name / "adapter_model.safetensors"
        tensors = load_file(file)
        if "classifier" in name:  # as a wrapper for classification writes it
            tensors["base_model.model.score.weight"] = torch.randn((3, 32), generator=generator)
            edited(out / "adapters" / name / "adapter_config.json", dict(modules_to_save=["classifier", "score"]))
        save(tensors, file)


def truth(out, case):
    with tempfile.TemporaryDirectory() as scratch:
        model_dir, adapter_dir = Path(scratch) / "model", Path(scratch) / "adapter"
        shutil.copytree(out / "models" / case["model"], model_dir)
        edited(model_dir / "config.json", case.get("edit", {}))
        changed(model_dir / "model.safetensors", case.get("tensors", {}))
        model = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager", dtype=torch.float32).eval()
        if "adapter" in case:
            shutil.copytree(out / "adapters" / case["adapter"], adapter_dir)
            edited(adapter_dir / "adapter_config.json", case.get("adapter_edit", {}))
            model = PeftModel.from_pretrained(model, adapter_dir).eval()
        longest = max(map(len, ROWS))
        logits = torch.zeros(len(ROWS), longest, SIZES["vocab_size"])
        with torch.no_grad():
            for i, row in enumerate(ROWS):  # each alone, so that nothing depends on padding
                ids = torch.tensor([row])
                logits[i, :len(row)] = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row):]
        return logits


def main():
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    make_models(out, generator)
    make_adapters(out, generator)
    found, plain = {}, {}
    for name, case in CASES.items():
        found[name] = truth(out, case)
        plain.setdefault(case["model"], found[name])
        off = (found[name] - plain[case["model"]]).abs().max().item()
        print(f"{name}: logits up to {found[name].abs().max():.1f}, off its model by {off:.2f}")
    save(found, out / "truth.safetensors")
    (out / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    (out / "input.json").write_text(json.dumps(dict(input_ids=ROWS)) + "\n")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    (out / "versions.json").write_text(json.dumps(versions) + "\n")


main()
