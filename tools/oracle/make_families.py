"""Tiny random models of the decoder families, and what transformers computes with them: tests/oracle/families.

writes: families
python: newer

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.51.3 safetensors numpy
    venv/bin/python tools/oracle/make_families.py tests/oracle/families

Each family is one option, or one family's set of options, of the same decoder. Weights are large enough that a wrong option is
seen in the logits: norms away from 1, biases away from 0, and positions past the scaled part of the rotary embedding.
Per family: config.json, weights, and io.safetensors with a right-padded batch (input_ids, attention_mask) and its logits, f32.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM,
    MistralConfig, MistralForCausalLM,
    Qwen2Config, Qwen2ForCausalLM,
    Qwen3Config, Qwen3ForCausalLM,
)

SEED = 20240405
LENGTHS = [23, 17, 9]
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)


def llama(**options):
    return LlamaForCausalLM, LlamaConfig(**(SIZES | options))


# name: (class and config, how it is stored)
FAMILIES = {
    "llama_rope_llama3": (llama(rope_scaling=LLAMA3), {}),
    # both spellings of the field, "type" and "rope_type", as transformers writes it
    "llama_rope_linear": (llama(rope_scaling=dict(type="linear", factor=2.0)), {}),
    "llama_biases": (llama(attention_bias=True, mlp_bias=True), {}),
    "llama_tied": (llama(tie_word_embeddings=True), {}),
    "llama_head_dim": (llama(head_dim=12), {}),
    "llama_sharded": (llama(), dict(max_shard_size="24KB")),
    "llama_bf16": (llama(), dict(bf16=True)),
    "mistral": ((MistralForCausalLM, MistralConfig(**(SIZES | dict(sliding_window=4)))), {}),
    # a window that config.json names and use_sliding_window switches off
    "qwen2": ((Qwen2ForCausalLM, Qwen2Config(**(SIZES | dict(tie_word_embeddings=True)))),
              dict(config=dict(use_sliding_window=False, sliding_window=4, max_window_layers=1))),
    "qwen3": ((Qwen3ForCausalLM, Qwen3Config(**(SIZES | dict(head_dim=16)))),
              dict(config=dict(use_sliding_window=False, sliding_window=None, max_window_layers=2))),
}


def randomize(model, generator):
    """Weights of about unit gain; norms around 1; biases around 0."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            p.data = 0.3 * noise
        elif p.dim() == 1:
            p.data = 1 + 0.3 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            p.data = 0.5 * noise
        else:
            p.data = noise * 1.2 / p.shape[1] ** 0.5
    model.tie_weights()


def batch(generator):
    input_ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        input_ids[row, :length] = torch.randint(0, SIZES["vocab_size"], (length,), generator=generator)
    columns = torch.arange(max(LENGTHS))
    mask = (columns[None] < torch.tensor(LENGTHS)[:, None]).long()
    return input_ids, mask


@torch.no_grad()
def make(name, folder):
    ((model_class, config), storage) = FAMILIES[name]
    generator = torch.Generator().manual_seed(SEED + sum(name.encode()))
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    randomize(model, generator)
    if storage.get("bf16"):
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=storage.get("max_shard_size", "5GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    # read back as a user would: weights rounded as they are stored, and what is not stored (rotary frequencies) in f32
    model = model_class.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    # after that: transformers 4.51 masks by a window that use_sliding_window switches off, later versions do not
    config_file = folder / "config.json"
    stored = json.loads(config_file.read_text()) | storage.get("config", {})
    config_file.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")

    input_ids, mask = batch(generator)
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    # one entry: safetensors writes several in no fixed order
    metadata = dict(made_with=f"torch {torch.__version__}, transformers {transformers.__version__}, seed {SEED}")
    tensors = dict(input_ids=input_ids, attention_mask=mask, logits=logits.contiguous())
    save_file(tensors, folder / "io.safetensors", metadata)
    print(f"{name}: logits up to {logits[mask.bool()].abs().max():.2f}")


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in FAMILIES:
        make(name, out / name)


if __name__ == "__main__":
    main()
