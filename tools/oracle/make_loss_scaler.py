"""What torch.amp.GradScaler decides on steps of which some overflow: tests/oracle/loss_scaler.

writes: loss_scaler
python: reference

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 safetensors numpy
    venv/bin/python tools/oracle/make_loss_scaler.py tests/oracle/loss_scaler

Gradients of two parameters are handed to the scaler as a backward of the scaled loss would leave them. In some steps one entry of
them is infinite or not a number. Written per step: the scale before it, the gradients as they come, the gradients after `unscale_`,
whether the step was skipped, the scale after it. The interval in which the scale grows is the default of 2,000 steps, so in the
second part nothing is written of the steps between the ends of a long run without overflow but their scales.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED = 20240607
# the step in which something overflows: which entry, and what it becomes
OVERFLOWS = {0: (0, float("inf")), 1: (1, float("nan")), 2: (0, float("-inf")), 7: (1, float("inf")), 8: (0, float("nan"))}
RECORDED = 12
# steps without overflow before each overflow of the long run: just short of the interval, just past it, past two of them
LONG = [1999, 2000, 1, 4003, 1998]


class Counting(torch.optim.SGD):
    """An optimizer that tells whether its step was taken."""

    taken = 0

    def step(self, *arguments, **options):
        self.taken += 1
        return super().step(*arguments, **options)


def main(output):
    torch.manual_seed(SEED)
    output.mkdir(parents=True, exist_ok=True)
    parameters = [torch.zeros(3, 5, requires_grad=True), torch.zeros(7, requires_grad=True)]
    optimizer = Counting(parameters, lr=0.0)
    scaler = torch.amp.GradScaler(device="cpu")
    tensors, steps = {}, []
    for step in range(RECORDED):
        scale = scaler.get_scale()
        scaler.scale(torch.zeros(()))  # creates the scale on first use, as a training step does
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn_like(parameter) * scale
        if step in OVERFLOWS:
            which, value = OVERFLOWS[step]
            parameters[which].grad.view(-1)[2] = value
        for i, parameter in enumerate(parameters):
            tensors[f"{step}.scaled.{i}"] = parameter.grad.clone()
        scaler.unscale_(optimizer)
        for i, parameter in enumerate(parameters):
            tensors[f"{step}.unscaled.{i}"] = parameter.grad.clone()
        before = optimizer.taken
        scaler.step(optimizer)
        scaler.update()
        steps.append({"scale": scale, "skipped": optimizer.taken == before, "scale_after": scaler.get_scale()})

    scales = []
    for length in LONG:
        for overflow in [False] * length + [True]:
            parameters[0].grad = torch.full_like(parameters[0], float("inf") if overflow else scaler.get_scale())
            parameters[1].grad = torch.zeros_like(parameters[1])
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
    changes = [[i, scale] for i, scale in enumerate(scales) if i == 0 or scale != scales[i - 1]]
    save_file(tensors, output / "gradients.safetensors")
    record = {"torch": torch.__version__.split("+")[0], "seed": SEED, "steps": steps, "long": LONG, "changes": changes}
    (output / "steps.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
