"""GGUF files that llama.cpp's own converter makes of the tiny models of tests/oracle: tests/oracle/gguf_families.

writes: gguf_families
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy
    venv/bin/python tools/oracle/make_gguf_families.py tests/oracle/gguf_families [LLAMA_CPP]

The converter is that of the sources which the npm package node-llama-cpp 3.21.1 carries as a bundle of git; it is fetched with `npm pack`
into a temporary folder unless LLAMA_CPP names a checkout. The tiny models have no tokenizer: each file gets 64 tokens without a
meaning, everything else is the converter's. Weights are f32. Not taken: the tiny Granite and Phi-3, whose head size the converter does not write;
llama3's RoPE with another original context than Meta's models have, which the file does not hold.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PACKAGE = "node-llama-cpp@3.21.1"
MODELS = Path(__file__).resolve().parents[2] / "tests/oracle"
FAMILIES = [
    "families/llama_biases", "families/llama_head_dim", "families/llama_rope_linear", "families/mistral", "families/qwen2",
    "families/qwen3", "more_families/gemma2", "more_families/gemma3",
    "more_families/llama_yarn", "more_families/ministral3", "more_families/olmo2", "more_families/olmo3", "more_families/phi3_longrope", "more_families/smollm3",
]


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


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = Path(sys.argv[2]) if len(sys.argv) > 2 else sources(folder)
        sys.path[:0] = [str(source), str(source / "gguf-py")]
        for family in FAMILIES:
            convert(MODELS / family, out / f"{Path(family).name}.gguf", folder)


if __name__ == "__main__":
    main()
