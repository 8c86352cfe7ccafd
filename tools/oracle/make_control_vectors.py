"""Control vectors in the layouts of llama.cpp's cvector-generator and of repeng, by the package gguf: tests/oracle/control_vectors.

writes: control_vectors
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 safetensors numpy gguf==0.19.0
    PYTHONHASHSEED=0 venv/bin/python make_control_vectors.py OUT_DIR TESTS_ORACLE_DIR

Reads tiny_llama of TESTS_ORACLE_DIR.
    llama_cpp.gguf    model_hint "llama", layer_count as i32; direction.1 to direction.3
    repeng.gguf       model_hint "llama", layer_count as u32; direction.2 and direction.3, the later one first
    logits.safetensors  input_ids [1, 9]; FILE: logits [9, 128] of transformers' LlamaForCausalLM with direction.N added to the output of block N
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

FILES = {"llama_cpp": [1, 2, 3], "repeng": [3, 2]}


def direction(layer, scale):
    return (numpy.sin(numpy.arange(64, dtype=numpy.float32) * (0.3 + 0.2 * layer)) * scale).astype(numpy.float32)


def write(path, layers, scale):
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    count = writer.add_int32 if path.stem == "llama_cpp" else writer.add_uint32
    count("controlvector.layer_count", len(layers))
    for layer in layers:
        writer.add_tensor(f"direction.{layer}", direction(layer, scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.chmod(0o644)


def logits(model, ids, layers, scale):
    def hook(layer):
        v = torch.from_numpy(direction(layer, scale))
        return lambda module, inputs, output: (output[0] + v, *output[1:]) if isinstance(output, tuple) else output + v
    handles = [model.model.layers[layer].register_forward_hook(hook(layer)) for layer in layers]
    with torch.no_grad():
        found = model(input_ids=ids).logits[0]
    for handle in handles:
        handle.remove()
    return found


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
    model = LlamaForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 17, 99, 3, 64, 28, 110, 7, 42]])
    tensors = dict(input_ids=ids)
    for scale, (name, layers) in enumerate(FILES.items(), 1):
        write(out / f"{name}.gguf", layers, 0.4 * scale)
        tensors[name] = logits(model, ids, layers, 0.4 * scale)
    save(tensors, out / "logits.safetensors")


if __name__ == "__main__":
    main()
