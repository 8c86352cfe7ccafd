"""Compares `reft_rs.apply` with the program: logits at both paddings, and greedy replies with cached keys and values.

    python compare_with_program.py REPOSITORY PROGRAM [ARGUMENT…]

Adapters: every ReFT adapter of tests/written_by_0_1 (all methods, tied and untied, the four components, both rules for short prompts), whose
numbers were trained, on the model beside them. Versions: torch 2.11, transformers 5.24.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import reft_rs

# f32 on both sides, three blocks of width 16, logits up to 5. Products are summed in other orders: measured 2.1e-6.
TOLERANCE = 1e-5
PROMPTS = [[10, 21, 20, 7, 14, 22, 18, 23, 21], [5, 22, 3], [20], [18, 20, 29, 20, 18, 15, 23]]
NEW_TOKENS = 12
BOUND = 0.1  # of the hidden state


def batch(side):
    longest = max(map(len, PROMPTS))
    rows = [([0] * (longest - len(row)), row, [1] * len(row)) for row in PROMPTS]
    pad = (lambda fill, own: fill + own) if side == "left" else (lambda fill, own: own + fill)
    ids = torch.tensor([pad(fill, row) for fill, row, _ in rows])
    return ids, torch.tensor([pad(fill, ones) for fill, _, ones in rows])


def logits(model, side):
    """Logits of each prompt, in the order of its tokens."""
    ids, mask = batch(side)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
    return [row[own.bool()] for row, own in zip(found, mask)]


def replies(model, side):
    ids, mask = batch(side)
    found = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0
    )
    return found[:, ids.shape[1] :].tolist()


def largest(found, expected):
    return max(float((a - b[: len(a)]).abs().max()) for a, b in zip(found, expected))


def main(repository, program):
    folder = Path(repository) / "tests/written_by_0_1"
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.eval()
    base = logits(model, "right")
    adapters = sorted(path.parent for path in folder.glob("adapters/*/reft_config.json"))
    free, held = {}, set()  # logits with each adapter as it is, and the methods whose edits a bound has made shorter
    worst, fields = 0.0, {"method": set(), "component": set(), "share_weights": set(), "position_rule": set(), "max_edit_norm": set()}
    with tempfile.TemporaryDirectory() as scratch:
        rows, prompts, output = (Path(scratch) / name for name in ["batch.json", "prompts.jsonl", "logits.safetensors"])
        rows.write_text(json.dumps({"input_ids": PROMPTS}))
        prompts.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in PROMPTS))

        def run(*arguments):
            return subprocess.run([*program, *map(str, arguments)], check=True, capture_output=True, text=True).stdout

        # each once more, its edits bounded to a length that most of them have without
        bounded = [bounded_copy(adapter, Path(scratch) / adapter.name) for adapter in adapters]
        for adapter in adapters + bounded:
            config = json.loads((adapter / "reft_config.json").read_text())
            for name, seen in fields.items():
                seen.add(config.get(name))
            both = ["--model", folder / "model", "--adapter", adapter]
            run("logits", *both, "--input", rows, "--output", output)
            expected = load_file(output)["logits"]
            told = json.loads(run("generate", *both, "--input", prompts, "--json", "--max-new-tokens", NEW_TOKENS))
            applied = reft_rs.apply(model, adapter)
            for side in ["right", "left"]:
                difference = largest(logits(model, side), expected)
                worst = max(worst, difference)
                assert difference < TOLERANCE, f"{adapter.name}, padded on the {side}: logits differ by {difference}"
            found = replies(model, "left")
            for reply, row in zip(found, told["rows"]):
                assert reply[: len(row["ids"])] == row["ids"], f"{adapter.name}: replies {reply}, the program {row['ids']}"
            edited = logits(model, "right")
            edit = largest(edited, base)
            applied.remove()
            if adapter in bounded:
                if largest(edited, free[adapter.name]) > 1e-2:
                    held.add(config["method"])
            else:
                free[adapter.name] = edited
            assert edit > 1e-2, f"{adapter.name}: logits differ from the base model's by {edit} only, so nothing is tested"
            assert largest(logits(model, "right"), base) == 0, f"{adapter.name} was not taken off"
    short = fields["method"] - held
    assert short <= {"lobireft"}, f"the bound holds no edit of {', '.join(short)}, so nothing is tested"
    refused(model, folder / "adapters")
    print(f"{len(adapters)} adapters, with and without a bound of {BOUND}, agree with the program: logits within {worst:.1e}, replies token by token")
    print("; ".join(f"{name}: {', '.join(sorted(map(str, seen)))}" for name, seen in fields.items()))


def bounded_copy(adapter, place):
    """The adapter with a bound on its edits."""
    shutil.copytree(adapter, place)
    config = json.loads((place / "reft_config.json").read_text())
    (place / "reft_config.json").write_text(json.dumps({**config, "max_edit_norm": BOUND}))
    return place


def refused(model, adapters):
    """What does not belong together is refused, and leaves the model as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        config = json.loads((adapters / "loreft/reft_config.json").read_text())
        (copy / "reft_model.safetensors").write_bytes((adapters / "loreft/reft_model.safetensors").read_bytes())
        for change, words in [
            ({"format_version": 2}, "format_version is 2, expected 1"),
            ({"method": "new"}, "method is new"),
            ({"later": 1}, "the field later is unknown"),
            ({"base_model": {**config["base_model"], "hidden_size": 17}}, "base_model.hidden_size is 17, expected 16"),
            ({"layers": [0, 1]}, "which no edit of reft_config.json has"),
            ({"method": "direft"}, "proj_layer.weight, which direft needs"),
        ]:
            (copy / "reft_config.json").write_text(json.dumps({**config, **change}))
            try:
                reft_rs.apply(model, copy)
            except ValueError as error:
                assert words in str(error), f"{error} does not say {words}"
            else:
                raise AssertionError(f"{change} was accepted")
            hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
            assert not hooks, f"{change} left hooks on {len(hooks)} modules"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
