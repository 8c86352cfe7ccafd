"""ReFT adapters on models of transformers, by forward hooks.

The edits are those of the program: on tokens of the prompt only, in f32, whatever the model's dtype is. A forward without cached tokens is a
prompt; one behind cached tokens is a step of generation, which nothing is edited in.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FORMAT_VERSION = 1
FIELDS = {
    "format_version", "method", "layers", "component", "positions", "position_rule", "share_weights", "low_rank_dimension",
    "orthonormal_map", "act_fn", "dropout", "add_bias", "init", "base_model",
}  # fmt: skip
OPTIONAL = {"max_edit_norm"}
METHODS = {"loreft", "direft", "direft-orth", "noreft", "consreft", "lobireft"}
REPLACING = {"loreft", "noreft", "consreft"}  # what is in the subspace is taken out before the source is put in
ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def apply(model, directory):
    """Puts the ReFT adapter of `directory` on `model`, a causal language model of transformers or its decoder.

    Returns a handle whose `remove()` takes it off again. Adapters are applied in the order of the calls.
    """
    directory = Path(directory)
    config = _read(directory / "reft_config.json", model.config)
    tensors = load_file(directory / "reft_model.safetensors")
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    adapter = _Applied(config)
    places = []
    for layer in config["layers"]:
        edits = {}
        for group in adapter.groups:
            prefix = f"layers.{layer}.{config['component']}.{group}."
            own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            edits[group] = _Edit(config, own, prefix)
        places.append((_module(decoder.layers[layer], config["component"]), edits))
    if tensors:
        raise ValueError(f"{directory}: found the tensors {sorted(tensors)}, which no edit of reft_config.json has; take them out")
    adapter.handles.append(decoder.register_forward_pre_hook(adapter.see_prompt, with_kwargs=True))
    for module, edits in places:
        adapter.hook(module, config["component"] == "block_input", edits)
    return adapter


def _read(path, model):
    """The adapter's configuration, checked as far as what is computed depends on it."""
    config = json.loads(path.read_text())

    def check(field, found, expected, advice):
        if found not in expected:
            expected = " or ".join(str(one) for one in sorted(expected))
            raise ValueError(f"{path}: {field} is {found}, expected {expected}; {advice}")

    check("format_version", config.get("format_version"), {FORMAT_VERSION}, "use the release of reft_rs that wrote it")
    for field in (config.keys() - OPTIONAL) ^ FIELDS:
        what = "unknown" if field in config else "missing"
        raise ValueError(f"{path}: the field {field} is {what}; use the release of reft_rs that wrote it")
    check("method", config["method"], METHODS, "use the release of reft_rs that wrote it")
    check("act_fn", config["act_fn"], set(ACTIVATIONS), "use the release of reft_rs that wrote it")
    for field in ["model_type", "hidden_size", "num_hidden_layers", "vocab_size"]:
        found = config["base_model"].get(field)
        if found is not None:
            check(f"base_model.{field}", found, {getattr(model, field)}, "give the model that it was trained on")
    return config


class _Edit:
    """`h + Dᵀ(source(h) − target(h))` of hidden states `[m, d]`."""

    def __init__(self, config, tensors, place):
        rotated = config["method"] in {"loreft", "direft-orth", "consreft", "lobireft"}
        try:
            directions = tensors.pop("rotation") if rotated else tensors.pop("proj_layer.weight").T  # Dᵀ [d, r]
            self.bias = tensors.pop("learned_source.bias").float()  # b [r]
            self.weight = tensors.pop("learned_source.weight").float() if config["method"] not in {"consreft", "lobireft"} else None  # W [r, d]
            self.target_bias = tensors.pop("proj_layer.bias").float() if config["method"] == "noreft" and config["add_bias"] else 0
        except KeyError as missing:
            raise ValueError(f"reft_model.safetensors has no {place}{missing.args[0]}, which {config['method']} needs; the file is not whole") from None
        if tensors:
            raise ValueError(f"reft_model.safetensors has {place}{min(tensors)}, which {config['method']} does not know; take it out")
        self.directions = directions.float()
        self.activation = ACTIVATIONS[config["act_fn"]]
        self.replaces = config["method"] in REPLACING
        self.bound = config.get("max_edit_norm")

    def __call__(self, base):
        with torch.autocast(base.device.type, enabled=False):
            directions, bias = self.directions.to(base.device), self.bias.to(base.device)
            h = base.float()
            source = bias if self.weight is None else self.activation(h @ self.weight.to(base.device).T + bias)
            if self.replaces:
                source = source - (h @ directions + torch.as_tensor(self.target_bias, device=base.device))
            edit = source @ directions.T
            if self.bound is not None:
                longest = self.bound * h.norm(dim=-1, keepdim=True)
                edit = edit * (longest / edit.norm(dim=-1, keepdim=True).clamp_min(1e-19)).clamp_max(1)
            return (h + edit).to(base.dtype)


class _Applied:
    """One adapter on one model."""

    def __init__(self, config):
        self.is_all = config["positions"] == "all"
        ends = {} if self.is_all else {part[0]: int(part[1:]) for part in config["positions"].split("+")}
        self.first, self.last = ends.get("f", 0), ends.get("l", 0)
        self.rule = config["position_rule"]
        untied = [group for group, n in [("prefix", self.first), ("suffix", self.last)] if n]
        self.groups = ["tied"] if config["share_weights"] or self.is_all else untied
        self.places = None  # of each group, which tokens of the present forward are edited [b, t]
        self.handles = []

    def remove(self):
        """Takes the adapter off the model."""
        for handle in self.handles:
            handle.remove()

    def see_prompt(self, decoder, args, kwargs):
        """Finds the prompts' tokens in the batch, whichever side it is padded on."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        cache = kwargs["cache"] if kwargs.get("cache") is not None else kwargs.get("past_key_values")  # the second is its earlier name
        self.places = None
        if cache is not None and cache.get_seq_length() > 0:
            if tokens.shape[1] > 1:
                raise ValueError(f"found {tokens.shape[1]} tokens behind cached ones, expected one: a prompt in pieces tells no ends; give it whole")
            return
        if mask.shape != tokens.shape[:2]:
            raise ValueError(f"found an attention mask {list(mask.shape)}, expected {list(tokens.shape[:2])}, which tells where prompts end; give that, and a cache that grows")
        mask = mask.bool()
        if self.is_all:
            self.places = {"tied": mask}
            return
        token = mask.cumsum(1) - 1  # index of each column's token in its prompt
        n = mask.sum(1, keepdim=True)
        half = (n // 2, (n + 1) // 2 if self.rule == "paper" else n // 2)
        p, s = half[0].clamp(max=self.first), half[1].clamp(max=self.last)
        if self.rule == "paper":
            fits = n >= self.first + self.last
            p, s = torch.where(fits, self.first, p), torch.where(fits, self.last, s)
        prefix, suffix = mask & (token < p), mask & (token >= n - s)
        self.places = {"prefix": prefix, "suffix": suffix, "tied": prefix | suffix}

    def edited(self, h, edits):
        """The hidden states `[b, t, d]` with those of the prompts' edited tokens replaced."""
        if self.places is None:
            return h
        h = h.clone()
        for group, edit in edits.items():
            place = self.places[group].to(h.device)
            h[place] = edit(h[place])
        return h

    def hook(self, module, is_input, edits):
        """Puts the edits of one layer on what goes into a module, or on what it gives."""

        def before(_module, args, kwargs):
            if args:
                return (self.edited(args[0], edits), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.edited(kwargs["hidden_states"], edits)}

        def behind(_module, _args, output):
            if isinstance(output, tuple):
                return (self.edited(output[0], edits), *output[1:])
            return self.edited(output, edits)

        if is_input:
            self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self.handles.append(module.register_forward_hook(behind))


def _module(block, component):
    """The module of a block whose input or output the component is."""
    modules = {"block_input": "", "block_output": "", "attention_output": "self_attn", "mlp_output": "mlp"}
    if component not in modules:
        raise ValueError(f"component is {component}, expected {', '.join(modules)}; use the release of reft_rs that wrote it")
    changes_branches = hasattr(block, "post_feedforward_layernorm") or getattr(block, "residual_multiplier", 1) != 1
    if modules[component] and changes_branches:
        raise ValueError(f"component is {component}, expected block_input or block_output: this model changes what a branch gives before it is added")
    return block.get_submodule(modules[component])
