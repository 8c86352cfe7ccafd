"""Logistic regressions of two sets of hidden states, by scikit-learn: tests/oracle/linear_probe.

writes: linear_probe
python: trl

    python3 -m venv venv && venv/bin/pip install scikit-learn==1.9.1 numpy
    PYTHONHASHSEED=0 venv/bin/python make_linear_probe.py OUT_DIR

The hidden states are divided by the root of their mean square, both sets together; the penalty is 1/2 |w|^2 beside the sum of the losses (C = 1),
and the intercept has none. linear_probe.json, per case: positive, negative, weights, intercept.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

# name: texts of each kind, hidden size, what the second set is moved by
CASES = {"few_numbers": (9, 7, 3, 0.4), "apart": (5, 6, 4, 3.0), "more_numbers_than_texts": (4, 5, 16, 1.0)}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, (name, (n, m, d, moved)) in enumerate(CASES.items()):
        draw = np.random.default_rng(seed)
        spread = np.linspace(5.0, 60.0, d)  # hidden states are neither small nor alike
        positive = np.round(draw.normal(size=(n, d)) * spread + moved * spread, 3)
        negative = np.round(draw.normal(size=(m, d)) * spread - 2.0, 3)
        x = np.concatenate([positive, negative])
        y = np.array([1] * n + [0] * m)
        model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        model.fit(x / np.sqrt((x**2).mean()), y)
        found[name] = dict(positive=positive.tolist(), negative=negative.tolist(),
                           weights=np.round(model.coef_[0], 9).tolist(), intercept=round(float(model.intercept_[0]), 9))
        print(name, found[name]["weights"], found[name]["intercept"])
    (out / "linear_probe.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
