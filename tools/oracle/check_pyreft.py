"""Loads adapters that were exported for pyreft, compares their logits with the recorded ones, and saves them changed.

    python check_pyreft.py tests/oracle DIR

Every folder of DIR is a case: `case.json` names the model (a folder of tests/oracle) and has the rows, `export` is the exported directory,
`logits.safetensors` has row0, row1, … `[t, v]`. The code of the export's README.md is run as it stands: it defines `load` and
`unit_locations`. Then every trained number is moved, and pyreft saves the adapter in `changed`; `changed.safetensors` has its logits. Needs torch
2.11, transformers 4.49, pyreft 0.1.0 and pyvene 0.1.8. Exits 1 if a logit differs.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pyreft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOLERANCE = 2e-5  # f32, the same sums in another order


def code_of(readme):
    return readme.split("```python\n")[1].split("```")[0]


def opened(folder):
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "use_sliding_window", None) is False:
        config.sliding_window = None  # transformers 4.49 masks by it although it is switched off
    return AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager", torch_dtype=torch.float32).eval()


@torch.no_grad()
def logits(reft, rows, unit_locations):
    found = {}
    for i, row in enumerate(rows):
        ids = torch.tensor([row["input_ids"]])
        _, output = reft({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, unit_locations=unit_locations(row["prompt_length"]))
        found[f"row{i}"] = output.logits[0].contiguous()
    return found


@torch.no_grad()
def move(reft, seed):
    generator = torch.Generator().manual_seed(seed)
    for intervention in reft.interventions.values():
        if isinstance(intervention, pyreft.LoreftIntervention):
            # what pyreft has loaded is orthonormal only where it stands: its base is no orthogonal matrix
            weight = intervention.rotate_layer.weight
            step = 0.1 * torch.randn(weight.shape, generator=generator)
            intervention.rotate_layer.weight = torch.linalg.qr(weight + step)[0]
        for name, parameter in intervention.named_parameters():
            step = 0.1 * torch.randn(parameter.shape, generator=generator)
            # torch cuts the diagonal of a rotation's matrix to a whole number, and does not read what is above it
            parameter += step.tril(-1) if "parametrizations" in name else step


def main():
    oracle, folder = map(Path, sys.argv[1:])
    worst, cases = 0.0, sorted(path.parent for path in folder.glob("*/case.json"))
    assert cases
    for seed, case in enumerate(cases):
        told = json.loads((case / "case.json").read_text())
        names = {}
        exec(code_of((case / "export/README.md").read_text()), names)
        reft = names["load"](str(case / "export"), opened(oracle / told["model"]))
        found, own = logits(reft, told["rows"], names["unit_locations"]), load_file(case / "logits.safetensors")
        off = max((found[name] - own[name]).abs().max().item() for name in own)
        move(reft, seed)
        changed = logits(reft, told["rows"], names["unit_locations"])
        moved = max((found[name] - changed[name]).abs().max().item() for name in found)
        reft.save(str(case / "changed"))
        save_file(changed, case / "changed.safetensors")
        print(f"{case.name}: {off:.1e}, moved by {moved:.1e}")
        assert moved > 1e-2, "the way back has no power"
        worst = max(worst, off)
    sys.exit(0 if worst <= TOLERANCE else f"off by {worst:.1e}, at most {TOLERANCE:.0e} is rounding")


if __name__ == "__main__":
    main()
