"""Times generation beside llama.cpp, in turns, with the same weights: prefill and seconds for each further token.

    python3 tools/rivals/llama_cpp.py --reft target/debug/reft --model models/SmolLM2-135M-Instruct --work DIR

llama.cpp's libraries and headers are those of the npm package node-llama-cpp; `llama_cpp.cpp` beside this file calls them. `DIR` keeps what is
fetched and made: packages, program, models. It prints a table, and JSON lines to DIR/results.jsonl. "Of the reads" is the
share of the speed at which as many threads sum a gigabyte, if every weight is read once for a token.
"""

import argparse
import array
import json
import math
import os
import pathlib
import platform
import random
import shlex
import statistics
import subprocess
import sys

VERSION = "3.21.1"
HERE = pathlib.Path(__file__).parent


def run(command, **more):
    done = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE, **more)
    if done.returncode:
        sys.exit(f"failed with {done.returncode}: {' '.join(str(part) for part in command)}")
    return done.stdout


def library(work):
    """The folder of llama.cpp's libraries, and the program that calls them."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.exit("llama.cpp's prebuilt libraries are fetched for Linux on x86-64 only")
    libraries = work / "linux-x64/package/bins/linux-x64"
    source, program = work / "llama.cpp", work / "llama_cpp"
    if not libraries.is_dir():
        for name, folder in [(f"node-llama-cpp@{VERSION}", "node"), (f"@node-llama-cpp/linux-x64@{VERSION}", "linux-x64")]:
            archive = run(["npm", "pack", "--silent", name], cwd=work).split()[-1]
            (work / folder).mkdir(exist_ok=True)
            run(["tar", "xzf", archive, "-C", folder], cwd=work)
    if not source.is_dir():
        run(["git", "clone", "--quiet", work / "node/package/llama/gitRelease.bundle", source])
    own = HERE / "llama_cpp.cpp"
    if not program.is_file() or program.stat().st_mtime < own.stat().st_mtime:
        linked = [next(libraries.glob(f"{name}.so*"), None) or next(libraries.glob(f"{name}.v*.so"))
                  for name in ["libllama-common", "libllama", "libggml", "libggml-base"]]
        headers = [part for folder in ["include", "ggml/include", "common"] for part in ("-I", source / folder)]
        run(["g++", "-O3", "-march=native", "-pthread", "-std=c++17", *headers, own, "-o", program, *linked, f"-Wl,-rpath,{libraries}"])
    return libraries, program


def wide(model, work):
    """A model of random weights, 1,024 wide, as blocks of 256 numbers want it: the tokenizer of `model`, 12 layers."""
    directory = work / "wide"
    if directory.is_dir():
        return directory
    directory.mkdir()
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
               "num_key_value_heads": 4, "head_dim": 64}
    for file in model.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], 1024), "model.norm.weight": (1024,)}
    for layer in range(12):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (rows, 1024)
                   for name, rows in [("q", 1024), ("k", 256), ("v", 256), ("o", 1024)]}
        shapes |= {f"{at}mlp.gate_proj.weight": (2816, 1024), f"{at}mlp.up_proj.weight": (2816, 1024),
                   f"{at}mlp.down_proj.weight": (1024, 2816), f"{at}input_layernorm.weight": (1024,),
                   f"{at}post_attention_layernorm.weight": (1024,)}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        draw = random.Random(0)
        own = array.array("f", (draw.gauss(0, 0.02) for _ in range(1 << 20)))  # time does not depend on the numbers: they repeat
        for shape in shapes.values():
            left = math.prod(shape)
            while left:
                n = min(left, len(own))
                (array.array("f", [1.0] * n) if len(shape) == 1 else own[:n]).tofile(file)
                left -= n
    return directory


def made(path, command, **more):
    if not path.is_file():
        run([part if part != "PATH" else path for part in command], **more)
    return path


def ours(options, file, kind, threads, rows, more):
    flags = [*more, "--methods", "floor", "--batch-size", rows, "--prompt-length", options.prompt, "--response-length", 4,
             "--steps", 1, "--rounds", 1, "--generate", options.new, "--threads", threads, "--json"]
    printed = run([*options.reft, "bench", "--model", file, "--weights", "as-stored", "--kind", kind, *flags],
                  stderr=subprocess.DEVNULL)
    return json.loads(printed)["rows"][0]["generation"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reft", required=True, type=shlex.split, help="the program, or a command line that runs it")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a Hugging Face directory")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="keeps what is fetched and made")
    parser.add_argument("--only", default="f32,bf16,q8_0,q4_k,q4_k+int8", help="forms of weights; +int8: ours with --int8-products")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rows", default="1", help="rows that are decoded at once")
    parser.add_argument("--prompt", type=int, default=120, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    libraries, program = library(work)
    environment = os.environ | {"LLAMA_CPP_BACKENDS": str(libraries)}
    quiet = {"stderr": subprocess.DEVNULL}
    print("| weights | threads | rows | ours, token | llama.cpp, token | ours / theirs | ours, of the reads | theirs | ours, prefill | theirs | ours / theirs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for form in options.only.split(","):
        if form.startswith("q4_k"):
            f32 = made(work / "wide-f32.gguf", [*options.reft, "export", "--model", wide(options.model, work), "--to", "gguf",
                                                "--kind", "f32", "--output", "PATH"], **quiet)
            file = made(work / "wide-q4_k.gguf", [program, "--quantize", f32, "PATH", "q4_k"], env=environment)
        else:
            file = made(work / f"model-{form}.gguf", [*options.reft, "export", "--model", options.model, "--to", "gguf",
                                                      "--kind", form, "--output", "PATH"], **quiet)
        for threads in options.threads.split(","):
            bandwidth = float(run([program, "--read", threads]))
            for rows in options.rows.split(","):
                sides = {"ours": [], "theirs": []}
                for _ in range(options.rounds):
                    theirs = run([program, file, threads, rows, options.prompt, options.new, 3], env=environment)
                    sides["theirs"].append(json.loads(theirs))
                    kind = form if form in ("bf16", "f16") else "f32"
                    more = ["--int8-products"] if form.endswith("+int8") else []
                    sides["ours"].append(ours(options, file, kind, threads, rows, more))
                with open(work / "results.jsonl", "a") as log:
                    log.write(json.dumps({"form": form, "threads": threads, "rows": rows, **sides}) + "\n")
                def median(side, key):
                    return statistics.median(x for turn in sides[side] for x in turn[key])
                (a, b), (c, d) = [[median(side, key) for side in ("ours", "theirs")]
                                  for key in ("decode_seconds_per_token", "prefill_seconds")]
                # the file is the weights, all of which a token reads
                share, other = (file.stat().st_size / bandwidth / seconds for seconds in (a, b))
                print(f"| {form} | {threads} | {rows} | {a * 1e3:.1f} ms | {b * 1e3:.1f} ms | {a / b:.2f} | {share:.0%} | {other:.0%} | {c:.3f} s | {d:.3f} s | {c / d:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main()
