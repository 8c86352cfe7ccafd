"""What torch computes of an edit that is bounded relative to the hidden state: tests/oracle/bounded.

writes: bounded
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 numpy
    venv/bin/python make_bounded.py OUT_DIR

    bounded.json  d 6, r 2. The edit e = (W h + b - h R) R^T of LoReFT, taken by autograd in float64 with the bound written as a branch:
                  h + e if |e| <= X |h|, else h + X |h| e / |e|. Per case: X; the edited rows, how many are bounded, and the gradients of the
                  sum of weights * edited with respect to h, R, W and b.
"""

import json
import sys
from pathlib import Path

import torch

D, R, N = 6, 2, 5


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).float().double()
    h, weights = draw(N, D) * torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)[:, None], draw(N, D)
    rotation = torch.linalg.qr(draw(D, R)).Q.float().double()
    source, bias = 0.7 * draw(R, D), 0.7 * draw(R)
    h, source, bias = h.float().double(), source.float().double(), bias.float().double()
    found = dict(h=h.tolist(), weights=weights.tolist(), rotation=rotation.tolist(), source=source.tolist(), bias=bias.tolist(), cases=[])
    for bound in [0.05, 0.8, 1.1, 50.0]:
        leaves = [own.clone().requires_grad_(True) for own in (h, rotation, source, bias)]
        states, r, w, b = leaves
        edited, bounded = [], 0
        for state in states:
            edit = r @ (w @ state + b - r.T @ state)
            if edit.norm() > bound * state.norm():
                edit, bounded = edit * (bound * state.norm() / edit.norm()), bounded + 1
            edited.append(state + edit)
        edited = torch.stack(edited)
        (weights * edited).sum().backward()
        gradients = dict(zip(["h", "rotation", "source", "bias"], [own.grad.tolist() for own in leaves]))
        found["cases"].append(dict(max_edit_norm=bound, bounded=bounded, edited=edited.tolist(), gradients=gradients))
        print(bound, bounded)
    (out / "bounded.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
