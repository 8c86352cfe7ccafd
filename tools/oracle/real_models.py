"""Published models: what this program computes with them, and what transformers does.

    python tools/oracle/real_models.py FOLDER REFT…

REFT… is the program, with what stands before its own arguments; FOLDER holds `minilm/` (all-MiniLM-L6-v2 as a Hugging Face directory) and `gemma-3-270m-q4_k_m.gguf`. Nothing is
written beside FOLDER. `cargo xtask oracle --real` fetches the models and runs this.

MiniLM: the hidden states of ten sentences, those after every block among them, alone and padded on either side, within 1e-5.
Gemma 3 270M: the weights of the GGUF file dequantised by the package `gguf` and put into transformers' model; logits of three prompts
within 2e-5 of their size, and 32 greedy tokens after each.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel, Gemma3ForCausalLM, Gemma3TextConfig

SENTENCES = [
    "The ocean is deep.",
    "A man is eating food at a café.",
    "How do I train a model to edit hidden states?",
    "Berlin is the capital of Germany; Paris is that of France.",
    "no",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Quantum chromodynamics describes the strong interaction between quarks and gluons.",
    "What time is it?",
    "In 1969 two people walked on the Moon for about two and a half hours, and came home.",
    "It's raining cats & dogs!",
]
PROMPTS = ["The ocean is", "Once upon a time there was a", "The capital of France is Paris, and the capital of Italy is"]
NEW = 32


def program(reft, *arguments):
    done = subprocess.run([*reft, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"reft {arguments[0]} fails:\n{done.stderr}")
    return done.stdout


def computed(reft, folder, model, rows, *more):
    """What `reft logits` writes for rows of token ids."""
    batch, output = folder / "batch.json", folder / "output.safetensors"
    batch.write_text(json.dumps(dict(input_ids=rows)))
    program(reft, "logits", "--model", model, "--input", batch, "--output", output, "--device", "cpu", *more)
    return load_file(output)


def off(found, expected):
    return (found.double() - expected.double()).abs().max().item()


@torch.no_grad()
def minilm(reft, model, folder):
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = BertModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    rows = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    expected = [encoder(torch.tensor([row]), output_hidden_states=True) for row in rows]
    worst = 0.0
    for more in [[], ["--left-pad"]]:
        found = computed(reft, folder, model, rows, "--hidden-states", *more)
        for i, (row, own) in enumerate(zip(rows, expected)):
            states = {f"hidden.{n}": state for n, state in enumerate(own.hidden_states)} | {"hidden.last": own.last_hidden_state}
            assert set(states) == set(found), (sorted(states), sorted(found))
            worst = max([worst] + [off(found[name][i, : len(row)], state[0]) for name, state in states.items()])
    print(f"all-MiniLM-L6-v2: {len(expected[0].hidden_states)} hidden states of {len(rows)} sentences, off by {worst:.1e} at most")
    return worst < 1e-5


def gemma(file):
    """The GGUF file's model in transformers, its weights dequantised by the package of llama.cpp."""
    reader = gguf.GGUFReader(file)
    field = lambda name: reader.fields[f"gemma3.{name}"].contents()
    layers = field("block_count")
    config = Gemma3TextConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data), hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=layers,
        num_attention_heads=field("attention.head_count"), num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("attention.key_length"), rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=field("context_length"), sliding_window=field("attention.sliding_window"),
        query_pre_attn_scalar=field("attention.key_length"), tie_word_embeddings=True,
        rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=field("rope.freq_base")),
                             sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
    modules = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "post_ffw_norm": "post_feedforward_layernorm",
    }
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(numpy.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32))
        name = tensor.name.removesuffix(".weight")
        if name == "token_embd":
            own = "model.embed_tokens"
        elif name == "output_norm":
            own = "model.norm"
        else:
            _, layer, part = name.split(".")
            own = f"model.layers.{layer}.{modules[part]}"
        if "norm" in name:
            values = values - 1  # llama.cpp holds 1 + w
        state[f"{own}.weight"] = values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are no weights
    model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    model.tie_weights()
    types = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return model.float().eval(), types


@torch.no_grad()
def gemma_270m(reft, file, folder):
    model, types = gemma(file)
    model.config._attn_implementation = "eager"
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    options = ["--max-new-tokens", NEW, "--device", "cpu", "--template", "plain"]
    said = json.loads(program(reft, "generate", "--model", file, "--input", prompts, "--json", *options))["rows"]
    found = computed(reft, folder, file, rows)["logits"]
    good = True
    for i, (row, reply) in enumerate(zip(rows, said)):
        expected = model(torch.tensor([row])).logits[0]
        worst = off(found[i, : len(row)], expected)
        allowed = 2e-5 * max(1.0, expected.abs().max().item() / 10)
        ids = model.generate(
            torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=False,
            max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)[0, len(row):]
        same = reply["ids"] == ids.tolist() and reply["prompt_tokens"] == len(row)
        print(f"Gemma 3 270M ({', '.join(types)}), {PROMPTS[i]!r}: logits off by {worst:.1e} of up to {expected.abs().max():.0f}, "
              f"{NEW} greedy tokens {'equal' if same else 'DIFFER'}: {reply['text']!r}")
        good = good and worst < allowed and same
    return good


def main():
    models, reft = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        results = [minilm(reft, models / "minilm", Path(folder)),
                   gemma_270m(reft, models / "gemma-3-270m-q4_k_m.gguf", Path(folder))]
    if not all(results):
        sys.exit("what is computed is not what transformers computes")


if __name__ == "__main__":
    main()
