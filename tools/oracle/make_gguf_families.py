"""GGUF files that llama.cpp's own converter makes of the tiny models of tests/oracle: tests/oracle/gguf_families.

writes: gguf_families
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    venv/bin/python tools/oracle/make_gguf_families.py tests/oracle/gguf_families [LLAMA_CPP]

The converter is that of the sources which the npm package node-llama-cpp 3.21.1 carries as a bundle of git; it is fetched with `npm pack`
into a temporary folder unless LLAMA_CPP names a checkout. The tiny models have no tokenizer: each file gets 64 tokens without a
meaning, everything else is the converter's. Weights are f32.

Two models are made here, because the converter says less of the tiny ones than they are: it writes no head size for Granite, and of
llama3's RoPE only factors for the original context of Meta's models.

NAME.gguf
NAME/   of the models made here: config.json, model.safetensors, io.safetensors (input_ids, attention_mask, logits)
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from make_more_families import LENGTHS, SEED, SIZES, padded, randomize, rows_of

PACKAGE = "node-llama-cpp@3.21.1"
MODELS = Path(__file__).resolve().parents[2] / "tests/oracle"
FAMILIES = [
    "families/llama_biases", "families/llama_head_dim", "families/llama_rope_linear", "families/mistral", "families/qwen2",
    "families/qwen3", "more_families/gemma2", "more_families/gemma3",
    "more_families/llama_yarn", "more_families/ministral3", "more_families/olmo2", "more_families/olmo3", "more_families/phi3_longrope", "more_families/smollm3",
]

# The head size is hidden_size / heads.
SQUARE = {name: size for name, size in SIZES.items() if name != "head_dim"}
MADE_HERE = {
    "granite": (GraniteForCausalLM, GraniteConfig(**SQUARE | dict(
        num_attention_heads=2, num_key_value_heads=1, embedding_multiplier=3.0, attention_multiplier=0.35, residual_multiplier=0.6,
        logits_scaling=0.7, attention_bias=True, mlp_bias=True))),
    # Wave lengths lie on both sides of 8192 / 4 and 8192 / 1, between which llama3 goes from one scale to the other.
    "llama3": (LlamaForCausalLM, LlamaConfig(**SQUARE | dict(
        hidden_size=48, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=131072, rope_parameters=dict(
            rope_type="llama3", rope_theta=50000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192)))),
}


def sources(folder):
    """The sources of llama.cpp in a folder, out of the npm package."""
    packed = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
    bundle = "package/llama/gitRelease.bundle"
    subprocess.run(["tar", "xzf", packed.stdout.split()[-1], bundle], cwd=folder, check=True)
    subprocess.run(["git", "clone", "--quiet", bundle, "llama.cpp"], cwd=folder, check=True, capture_output=True)
    return folder / "llama.cpp"


def set_vocab(self):
    n = self.hparams["vocab_size"]
    self.gguf_writer.add_tokenizer_model("llama")
    self.gguf_writer.add_token_list([f"<{i}>" for i in range(n)])
    self.gguf_writer.add_token_scores([0.0] * n)
    self.gguf_writer.add_token_types([1] * n)


@torch.inference_mode()
def convert(model, file, folder):
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    own = folder / "model"
    shutil.copytree(model, own, ignore=shutil.ignore_patterns("lora", "io.safetensors"))
    # Gemma's converter counts the tokens
    vocabulary = {f"<{i}>": i for i in range(64)}
    (own / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab=vocabulary), added_tokens=[])))
    architecture = get_model_architecture(ModelBase.load_hparams(own, False), ModelType.TEXT)
    known = get_model_class(architecture)
    if hasattr(known, "Ministral3Model"):
        known.Ministral3Model.set_vocab = set_vocab
    converter = type(known.__name__, (known,), dict(set_vocab=set_vocab, model_arch=known.model_arch))
    converter(own, gguf.LlamaFileType.ALL_F32, file, model_name=model.name).write()
    shutil.rmtree(own)
    print(f"{model.name}: {architecture}, {file.stat().st_size // 1000} kB")


@torch.no_grad()
def make(name, out):
    """A model of MADE_HERE, as transformers saves it, and its logits."""
    kind, config = MADE_HERE[name]
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    model = kind(config).eval()
    randomize(model, generator)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    rows = rows_of(generator)
    logits = padded([model(row[None]).logits[0] for row in rows])
    mask = padded([torch.ones(length, dtype=torch.long) for length in LENGTHS])
    save_file(dict(input_ids=padded(rows), attention_mask=mask, logits=logits), out / "io.safetensors")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = Path(sys.argv[2]) if len(sys.argv) > 2 else sources(folder)
        sys.path[:0] = [str(source), str(source / "gguf-py")]
        for family in FAMILIES:
            convert(MODELS / family, out / f"{Path(family).name}.gguf", folder)
        for name in MADE_HERE:
            make(name, out / name)
            convert(out / name, out / f"{name}.gguf", folder)


if __name__ == "__main__":
    main()
