"""Representation fine-tuning: the program `reft`, and its adapters on models of transformers.

`version` is that of both. `apply(model, directory)` puts an adapter that `reft train` wrote on a model; it needs transformers, and is imported
when it is first asked for, so that the command `reft` starts without importing torch.
"""

from importlib.metadata import version as _version_of

version = _version_of("reft-rs")

__all__ = ["apply", "version"]


def __getattr__(name):
    if name == "apply":
        from reft_rs.hooks import apply

        return apply
    raise AttributeError(f"module 'reft_rs' has no attribute {name!r}")
