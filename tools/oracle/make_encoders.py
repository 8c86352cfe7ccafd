"""Tiny random encoders, and what transformers and PEFT compute with them: tests/oracle/encoders.

writes: encoders
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2 safetensors numpy
    PYTHONHASHSEED=0 venv/bin/python tools/oracle/make_encoders.py tests/oracle/encoders

Biases are away from 0, weights of norms from 1, tables of positions and types are as large as the embeddings, the window of ModernBERT
is shorter than the rows. Rows are run one at a time: in a padded batch transformers counts positions from the first column.

NAME/
    config.json, model.safetensors
    lora/              a LoRA of PEFT on modules of the family, far from its start
    tokenizer.json, …  of bert and roberta, with texts.json: texts, or pairs of them, their ids and the types of the tokens
    io.safetensors     input_ids, attention_mask (right padded), token_type_ids of models that have types; embeddings (what goes into
                       the first block), block.{i} (outputs of blocks), last (last_hidden_state); lora.last;
                       typed.last (with token_type_ids); reft.{layer}.{rotation,weight,bias} of a LoReFT on block outputs at f3+l2,
                       reft.last, and reft.{layer}.grad.{weight,bias} of Σ probe · reft.last
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from transformers import (
    BertConfig, BertForMaskedLM, BertModel, BertTokenizer,
    CamembertConfig, CamembertModel,
    DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel,
    ModernBertConfig, ModernBertForMaskedLM, ModernBertModel,
    RobertaConfig, RobertaForSequenceClassification, RobertaModel, RobertaTokenizer,
)

SEED = 20261127
LENGTHS = [21, 13, 8]
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=48, layer_norm_eps=1e-3,
)
DISTILBERT = dict(vocab_size=64, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=48)
MODERNBERT = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    local_attention=10, norm_eps=1e-3,
)
BERT_MODULES = ["query", "value", "attention.output.dense", "intermediate.dense"]

# name: (class saved, class run, config, modules of the LoRA)
ENCODERS = {
    "bert": (BertModel, BertModel, BertConfig(**SIZES, type_vocab_size=3), BERT_MODULES),
    "bert_mlm": (BertForMaskedLM, BertModel, BertConfig(**SIZES, hidden_act="gelu_new"), ["query", "value"]),
    "roberta": (RobertaModel, RobertaModel, RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1), BERT_MODULES),
    "roberta_classifier": (
        RobertaForSequenceClassification, RobertaModel,
        RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=5, num_labels=3), ["query", "value"]),
    "camembert": (CamembertModel, CamembertModel, CamembertConfig(**SIZES, type_vocab_size=1), ["query", "value"]),
    "modernbert": (ModernBertModel, ModernBertModel, ModernBertConfig(
        **MODERNBERT, rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=3000.0),
                                           sliding_attention=dict(rope_type="default", rope_theta=70.0))),
        ["Wqkv", "Wo", "Wi"]),
    "modernbert_mlm": (ModernBertForMaskedLM, ModernBertModel, ModernBertConfig(
        **MODERNBERT, attention_bias=True, mlp_bias=True, norm_bias=True, hidden_activation="gelu_pytorch_tanh",
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"]), ["Wqkv", "Wo"]),
    "distilbert": (DistilBertModel, DistilBertModel, DistilBertConfig(**DISTILBERT),
                   ["q_lin", "v_lin", "out_lin", "lin1", "lin2"]),
    "distilbert_classifier": (
        DistilBertForSequenceClassification, DistilBertModel, DistilBertConfig(**DISTILBERT, sinusoidal_pos_embds=True),
        ["q_lin", "v_lin"]),
}


def randomize(model, generator):
    """Weights of about unit gain; norms around what scales nothing; biases around 0."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            p.data = 0.3 * noise
        elif p.dim() == 1:
            p.data = 0.3 * noise + 1.0
        elif "embeddings" in name:
            p.data = 0.7 * noise
        else:
            p.data = noise * 1.2 / p.shape[1] ** 0.5
    model.tie_weights()


def padded(rows):
    out = torch.zeros((len(rows), max(LENGTHS), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def blocks_of(model):
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    for name in ["encoder", "transformer"]:
        if hasattr(model, name):
            return getattr(model, name).layer
    return model.layers


def first(out):
    return out[0] if isinstance(out, tuple) else out


def run(model, row, **more):
    """The hidden states of one row: what goes into the first block, the output of every block, last_hidden_state."""
    entry, outputs, handles = [], [], []
    blocks = blocks_of(model)
    handles.append(blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: entry.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True))
    for block in blocks:
        handles.append(block.register_forward_hook(lambda _m, _i, out: outputs.append(first(out))))
    last = model(input_ids=row[None], attention_mask=torch.ones_like(row[None]), **more).last_hidden_state[0]
    for handle in handles:
        handle.remove()
    return last, entry[0][0], [out[0] for out in outputs]


class Loreft(torch.nn.Module):
    def __init__(self, d, r, generator):
        super().__init__()
        self.rotation = torch.linalg.qr(torch.randn(d, r, generator=generator)).Q  # [d, r]
        self.weight = torch.nn.Parameter(0.4 * torch.randn(r, d, generator=generator))
        self.bias = torch.nn.Parameter(0.4 * torch.randn(r, generator=generator))

    def forward(self, h):
        return h + (h @ self.weight.T + self.bias - h @ self.rotation) @ self.rotation.T


def loreft(model, layers, rows, probes, generator):
    """last_hidden_state with two edits at the first three and the last two tokens, and gradients of its sum with a probe."""
    edits = {layer: Loreft(32, 3, generator) for layer in layers}
    lasts = []
    for row, probe in zip(rows, probes):
        positions = [0, 1, 2, len(row) - 2, len(row) - 1]
        handles = []
        for layer, edit in edits.items():
            def hook(_m, _i, out, edit=edit):
                h = first(out)
                edited = h.clone()
                edited[0, positions] = edit(h[0, positions])
                return (edited, *out[1:]) if isinstance(out, tuple) else edited
            handles.append(blocks_of(model)[layer].register_forward_hook(hook))
        last = model(input_ids=row[None], attention_mask=torch.ones_like(row[None])).last_hidden_state[0]
        for handle in handles:
            handle.remove()
        (probe * last).sum().backward()
        lasts.append(last.detach())
    return edits, lasts


TEXTS = [
    "The café is open.", "the CAFE", "unknown zebras", "", "open[SEP]the", "cafés, cafés",
    ["the café", "is open"], ["unknown", "the the the"],
]


def write_tokenizer(name, folder):
    """A tokenizer of the class that goes with a model, and what it makes of texts."""
    if name == "bert":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "is", "open", ".", ",", "un", "##known", "The"]
        tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    else:
        letters = sorted(set("the The café is open. unknown zebras".encode("utf-8")))
        letters = ["\u0120" if byte == 32 else chr(byte) for byte in letters]  # the others print as themselves
        merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("o", "p"), ("op", "e"), ("ope", "n"), ("\u0120", "open"), ("i", "s")]
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in merges), "<mask>"]
        tokenizer = RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)
    tokenizer = type(tokenizer).from_pretrained(folder)
    texts = []
    for text in TEXTS:
        pair = [text] if isinstance(text, str) else text
        found = tokenizer(*pair, return_token_type_ids=True)
        texts.append(dict(text=pair, ids=found["input_ids"], types=found["token_type_ids"]))
    (folder / "texts.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


def make(name, out):
    saved_class, model_class, config, modules = ENCODERS[name]
    folder = out / name
    generator = torch.Generator().manual_seed(SEED + sum(name.encode()))
    config._attn_implementation = "eager"
    whole = saved_class(config).eval()
    randomize(whole, generator)
    whole.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = [torch.randint(6, 60, (length,), generator=generator) for length in LENGTHS]
    for i in [3, 4, 9]:
        rows[0][i] = model.config.pad_token_id  # within a text it is a token like others, and takes no position in RoBERTa
    with torch.no_grad():
        found = [run(model, row) for row in rows]
    tensors = dict(
        input_ids=padded(rows), attention_mask=padded([torch.ones_like(row) for row in rows]),
        last=padded([last for last, _, _ in found]), embeddings=padded([entry for _, entry, _ in found]))
    for block in range(len(found[0][2])):
        tensors[f"block.{block}"] = padded([outputs[block] for _, _, outputs in found])
    if getattr(config, "type_vocab_size", 1) > 1:
        types = [torch.randint(0, config.type_vocab_size, row.shape, generator=generator) for row in rows]
        tensors["token_type_ids"] = padded(types)
        with torch.no_grad():
            tensors["typed.last"] = padded([run(model, row, token_type_ids=own[None])[0] for row, own in zip(rows, types)])
    probes = [torch.randn(len(row), 32, generator=generator) for row in rows]
    edits, lasts = loreft(model, [0, 1], rows, probes, generator)
    tensors["probe"] = padded(probes)
    tensors["reft.last"] = padded(lasts)
    for layer, edit in edits.items():
        tensors[f"reft.{layer}.rotation"] = edit.rotation
        for part in ["weight", "bias"]:
            tensors[f"reft.{layer}.{part}"] = getattr(edit, part).detach()
            tensors[f"reft.{layer}.grad.{part}"] = getattr(edit, part).grad
    # of a model with a head the LoRA is made on the whole of it, and has its names
    is_whole = saved_class is not model_class
    base = saved_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    task = TaskType.SEQ_CLS if "Classification" in saved_class.__name__ else None
    layers = None if name == "modernbert" else [0, 2]  # PEFT finds no number in names that begin with `layers`
    lora = get_peft_model(base, LoraConfig(
        r=2, lora_alpha=3, target_modules=modules, layers_to_transform=layers, task_type=task))
    for part, p in lora.named_parameters():
        if "lora_" in part:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    lora.save_pretrained(folder / "lora")
    (folder / "lora" / "README.md").unlink(missing_ok=True)
    adapter = folder / "lora" / "adapter_config.json"
    stored = json.loads(adapter.read_text()) | dict(base_model_name_or_path=name)
    adapter.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    inner = lora.get_base_model()
    inner = getattr(inner, inner.base_model_prefix) if is_whole else inner
    with torch.no_grad():
        tensors["lora.last"] = padded([run(inner, row)[0] for row in rows])
    made_with = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, seed {SEED}"
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "io.safetensors", dict(made_with=made_with))
    if name in ["bert", "roberta"]:
        write_tokenizer(name, folder)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()), indent=2, sort_keys=True) + "\n")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 1000
    print(f"{name}: hidden states up to {tensors['last'].abs().max():.2f}, {size} kB")


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or ENCODERS:
        make(name, out)


if __name__ == "__main__":
    main()
