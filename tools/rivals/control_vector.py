"""Checks control vectors written here against llama.cpp: the same greedy tokens on the same weights.

    python3 tools/rivals/control_vector.py --reft target/debug/reft --model models/SmolLM2-135M-Instruct --work DIR

Directions are made at three layers, written as a control vector, and loaded by llama.cpp's own `common_control_vector_load`. `DIR` keeps what
`llama_cpp.py` fetches and makes. It ends with 1 if a reply differs, or if a direction changes none.
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

from llama_cpp import library, made, run

TOWARDS = ["I love this, it is wonderful", "What a happy day", "This made me smile with joy", "Everything went well and we laughed"]
AWAY = ["I hate this, it is terrible", "What a sad day", "This made me cry with grief", "Everything went wrong and we wept"]
PROMPTS = ["The ocean is", "Today I feel", "My neighbour said that the food was", "When the train came,"]
LAYERS, NEW = [6, 14, 22], 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reft", required=True, type=shlex.split, help="the program, or a command line that runs it")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a Hugging Face directory")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="keeps what is fetched and made")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    libraries, program = library(work)
    environment = os.environ | {"LLAMA_CPP_BACKENDS": str(libraries)}
    quiet = {"stderr": subprocess.DEVNULL}
    model = made(work / "model-f32.gguf", [*options.reft, "export", "--model", options.model, "--to", "gguf", "--kind", "f32",
                                           "--output", "PATH"], **quiet)
    differing, changed, compared = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "towards.txt").write_text("\n".join(TOWARDS))
        (folder / "away.txt").write_text("\n".join(AWAY))
        plain = {prompt: run([program, "--reply", model, prompt, NEW], env=environment) for prompt in PROMPTS}
        for layer in LAYERS:
            direction, vector = folder / f"direction-{layer}", folder / f"direction-{layer}.gguf"
            run([*options.reft, "steer", "--model", options.model, "--layer", layer, "--positive", folder / "towards.txt",
                 "--negative", folder / "away.txt", "--kl", "0.5", "--output", direction], **quiet)
            run([*options.reft, "export", "--to", "control-vector", "--adapter", direction, "--output", vector], **quiet)
            for prompt in PROMPTS:
                ours = run([*options.reft, "generate", "--model", model, "--adapter", direction, "--prompt", prompt,
                            "--max-new-tokens", NEW], **quiet).removesuffix("\n")
                theirs = run([program, "--reply", model, prompt, NEW, vector, 1], env=environment)
                compared, changed = compared + 1, changed + (theirs != plain[prompt])
                if ours != theirs:
                    differing += 1
                    print(f"layer {layer}, {prompt!r}\n  ours:   {ours!r}\n  theirs: {theirs!r}")
    print(f"{compared} replies of {NEW} tokens, {compared - differing} the same as llama.cpp's; {changed} differ from the plain model's")
    if differing or not changed:
        sys.exit(1)


if __name__ == "__main__":
    main()
