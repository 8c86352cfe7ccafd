"""Tiny random models of decoder families and of types of RoPE, and what transformers and PEFT compute with them:
tests/oracle/more_families.

writes: more_families
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python tools/oracle/make_more_families.py tests/oracle/more_families

Head sizes are not hidden_size / heads where a family can have that, biases are away from 0 where it can have them, windows and original
contexts are shorter than the rows, scores go far from 0. Rows are run one at a time by a fresh copy of the model: what
transformers computes of a row in a batch depends on the others where RoPE looks at the longest.

NAME/
    config.json, model.safetensors
    lora/              a LoRA of PEFT on modules of the family, far from its start
    io.safetensors     input_ids, attention_mask (right padded), labels; logits, block.{i} (outputs of blocks);
                       generated (32 greedy tokens after the first 9 of rows 0 and 1) and the lead of each over the second;
                       lora.logits; reft.{layer}.{rotation,weight,bias} of a LoReFT on block outputs at f2+l1 of all but
                       the last four tokens, reft.{layer}.grad.{weight,bias} and reft.logits
"""

import copy
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from transformers import (
    Gemma2Config, Gemma2ForCausalLM,
    Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ForCausalLM, Gemma3TextConfig,
    GraniteConfig, GraniteForCausalLM,
    LlamaConfig, LlamaForCausalLM,
    Ministral3Config, Ministral3ForCausalLM,
    Olmo2Config, Olmo2ForCausalLM,
    Olmo3Config, Olmo3ForCausalLM,
    Phi3Config, Phi3ForCausalLM,
    SmolLM3Config, SmolLM3ForCausalLM,
)

SEED = 20261126
LENGTHS = [23, 17, 9]
PROMPT = 9
NEW = 32
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=24, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=12)
PHI = SIZES | dict(hidden_size=48, num_attention_heads=2, num_key_value_heads=1)
PHI.pop("head_dim")  # its length checks are of hidden_size / heads


def factors(start, step, n=9):
    return [start + step * i for i in range(n)]


SEPARATE = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

# name: (class, config, modules of the LoRA)
FAMILIES = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES | dict(
        query_pre_attn_scalar=20, sliding_window=5, attn_logit_softcapping=4.0, final_logit_softcapping=3.0,
        attention_bias=True, tie_word_embeddings=True)), SEPARATE),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**SIZES | dict(
        num_hidden_layers=6, query_pre_attn_scalar=20, sliding_window=5, final_logit_softcapping=6.0, attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=dict(full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1000.0),
                             sliding_attention=dict(rope_type="default", rope_theta=50.0)))), SEPARATE),
    "gemma3_images": (Gemma3ForConditionalGeneration, Gemma3Config(
        text_config=SIZES | dict(model_type="gemma3_text", num_hidden_layers=3, sliding_window=5,
                                 sliding_window_pattern=3, query_pre_attn_scalar=24, tie_word_embeddings=True),
        vision_config=dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                           num_attention_heads=1, image_size=8, patch_size=4),
        mm_tokens_per_image=4, boi_token_index=60, eoi_token_index=61, image_token_index=62,
        tie_word_embeddings=True), None),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**SIZES | dict(
        num_hidden_layers=5, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=5, attention_bias=True,
        mlp_bias=True, rope_parameters=dict(rope_type="default", rope_theta=500.0))), SEPARATE),
    "granite": (GraniteForCausalLM, GraniteConfig(**SIZES | dict(
        embedding_multiplier=3.0, attention_multiplier=0.35, residual_multiplier=0.6, logits_scaling=0.7,
        attention_bias=True, mlp_bias=True)), SEPARATE),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SIZES | dict(attention_bias=True)), SEPARATE),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config(**SIZES | dict(
        sliding_window=5, attention_bias=True,
        rope_parameters=dict(full_attention=YARN,
                             sliding_attention=dict(rope_type="default", rope_theta=300.0)))), SEPARATE),
    "phi3": (Phi3ForCausalLM, Phi3Config(**SIZES | dict(
        sliding_window=5, rope_parameters=dict(rope_type="default", rope_theta=800.0, partial_rotary_factor=0.75))), FUSED),
    "phi3_longrope": (Phi3ForCausalLM, Phi3Config(**PHI | dict(
        original_max_position_embeddings=12,
        rope_parameters=dict(rope_type="longrope", rope_theta=800.0, partial_rotary_factor=0.75,
                             short_factor=factors(1.0, 0.05), long_factor=factors(1.5, 0.7),
                             original_max_position_embeddings=12))), FUSED),
    "ministral3": (Ministral3ForCausalLM, Ministral3Config(**SIZES | dict(
        head_dim=80, num_attention_heads=2, num_key_value_heads=1, sliding_window=11,
        rope_parameters=dict(rope_type="yarn", rope_theta=5000.0, factor=8.0, original_max_position_embeddings=8,
                             beta_fast=4.0, beta_slow=0.5, mscale=1.0, mscale_all_dim=0.5,
                             llama_4_scaling_beta=0.4))), SEPARATE),
    "llama_yarn": (LlamaForCausalLM, LlamaConfig(**SIZES | dict(
        rope_parameters=YARN | dict(beta_fast=2.0, beta_slow=0.3, truncate=False, attention_factor=1.3))), SEPARATE),
    "llama_dynamic": (LlamaForCausalLM, LlamaConfig(**SIZES | dict(
        max_position_embeddings=12, rope_parameters=dict(rope_type="dynamic", rope_theta=200.0, factor=4.0),
        hidden_act="gelu")), SEPARATE),
}


def randomize(model, generator):
    """Weights of about unit gain; norms around what scales nothing; biases around 0."""
    is_around_zero = "Gemma" in type(model).__name__
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            p.data = 0.3 * noise
        elif p.dim() == 1:
            p.data = 0.3 * noise + (0.0 if is_around_zero else 1.0)
        elif "embed_tokens" in name or "lm_head" in name:
            p.data = 0.5 * noise
        else:
            p.data = noise * 1.2 / p.shape[1] ** 0.5
    model.tie_weights()


def rows_of(generator):
    return [torch.randint(3, 60, (length,), generator=generator) for length in LENGTHS]


def padded(rows):
    out = torch.zeros((len(rows), max(LENGTHS), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def decoder_of(model):
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner = model.model
    return getattr(inner, "language_model", inner)


def run(model, row):
    """Logits and the output of every block, of one row."""
    model = copy.deepcopy(model)  # RoPE keeps what it saw
    outputs = []
    for block in decoder_of(model).layers:
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    logits = model(input_ids=row[None]).logits[0]
    return logits, [out[0] for out in outputs]


@torch.no_grad()
def greedy(model, row):
    """Greedy tokens and the lead of each over the second best, by the library's own generate."""
    model = copy.deepcopy(model)
    out = model.generate(
        input_ids=row[None], attention_mask=torch.ones_like(row[None]), do_sample=False, max_new_tokens=NEW,
        min_new_tokens=NEW, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_scores=True)
    top = [scores[0].topk(2).values for scores in out.scores]
    return out.sequences[0, len(row):], torch.stack([two[0] - two[1] for two in top])


class Loreft(torch.nn.Module):
    def __init__(self, d, r, generator):
        super().__init__()
        self.rotation = torch.linalg.qr(torch.randn(d, r, generator=generator)).Q  # [d, r]
        self.weight = torch.nn.Parameter(0.4 * torch.randn(r, d, generator=generator))
        self.bias = torch.nn.Parameter(0.4 * torch.randn(r, generator=generator))

    def forward(self, h):
        return h + (h @ self.weight.T + self.bias - h @ self.rotation) @ self.rotation.T


def loreft(model, layers, rows, labels, generator):
    """Logits with two edits at the first two and the last prompt tokens, and gradients of the mean loss."""
    d = decoder_of(model).config.hidden_size
    edits = {layer: Loreft(d, 3, generator) for layer in layers}
    n_targets = sum(int((own[1:] != -100).sum()) for own in labels)
    logits = []
    for row, own in zip(rows, labels):
        fresh = copy.deepcopy(model)
        prompt = int((own == -100).sum())
        positions = [0, 1, prompt - 1]
        for layer, edit in edits.items():
            def hook(_m, _i, out, edit=edit):
                h = out[0] if isinstance(out, tuple) else out
                edited = h.clone()
                edited[0, positions] = edit(h[0, positions])
                return (edited, *out[1:]) if isinstance(out, tuple) else edited
            decoder_of(fresh).layers[layer].register_forward_hook(hook)
        out = fresh(input_ids=row[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(out[:-1].float(), own[1:], ignore_index=-100, reduction="sum")
        (losses / n_targets).backward()
        logits.append(out.detach())
    return edits, logits


def make(name, out):
    model_class, config, modules = FAMILIES[name]
    folder = out / name
    generator = torch.Generator().manual_seed(SEED + sum(name.encode()))
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    randomize(model, generator)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = rows_of(generator)
    labels = [torch.where(torch.arange(len(row)) < len(row) - 4, -100, row) for row in rows]
    with torch.no_grad():
        found = [run(model, row) for row in rows]
    tensors = dict(
        input_ids=padded(rows), labels=padded(labels),
        attention_mask=padded([torch.ones_like(row) for row in rows]),
        logits=padded([logits for logits, _ in found]))
    for i, length in enumerate(LENGTHS):
        tensors["labels"][i, length:] = -100
    for block in range(len(found[0][1])):
        tensors[f"block.{block}"] = padded([outputs[block] for _, outputs in found])
    replies = [greedy(model, row[:PROMPT]) for row in rows[:2]]
    tensors["generated"] = torch.stack([ids for ids, _ in replies])
    tensors["lead"] = torch.stack([lead for _, lead in replies])
    edits, logits = loreft(model, [0, 2], rows, labels, generator)
    tensors["reft.logits"] = padded(logits)
    for layer, edit in edits.items():
        tensors[f"reft.{layer}.rotation"] = edit.rotation
        for part in ["weight", "bias"]:
            tensors[f"reft.{layer}.{part}"] = getattr(edit, part).detach()
            tensors[f"reft.{layer}.grad.{part}"] = getattr(edit, part).grad
    if modules is not None:
        lora = get_peft_model(copy.deepcopy(model), LoraConfig(
            r=2, lora_alpha=3, target_modules=modules, layers_to_transform=[0, 1, 3], task_type=TaskType.CAUSAL_LM))
        for part, p in lora.named_parameters():
            if "lora_" in part:
                p.data = 0.2 * torch.randn(p.shape, generator=generator)
        lora.save_pretrained(folder / "lora")
        (folder / "lora" / "README.md").unlink(missing_ok=True)
        adapter = folder / "lora" / "adapter_config.json"
        stored = json.loads(adapter.read_text()) | dict(base_model_name_or_path=name)
        adapter.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
        with torch.no_grad():
            tensors["lora.logits"] = padded([run(lora, row)[0] for row in rows])
    made_with = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, seed {SEED}"
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "io.safetensors", dict(made_with=made_with))
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()), indent=2, sort_keys=True) + "\n")
    spread = tensors["logits"].abs().max()
    print(f"{name}: logits up to {spread:.2f}, least lead {tensors['lead'].min():.1e}, "
          f"{sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) // 1000} kB")


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or FAMILIES:
        make(name, out)


if __name__ == "__main__":
    main()
