"""The model, the data and the batch that everything in this folder was made from: plain Python, random numbers from seeds."""

import json
import random
import struct
from pathlib import Path

HERE = Path(__file__).parent
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, MLP = 16, 3, 2, 1, 8, 24
WORDS = (
    "<unk> <s> </s> The near by dog cat child bird dogs cats children birds is are "
    "no yes : . one two red blue old small say now runs sleeps sees likes"
).split()


def tensors():
    vocabulary, kv = len(WORDS), KV_HEADS * HEAD
    shapes = {"model.embed_tokens.weight": [vocabulary, HIDDEN]}
    for layer in range(LAYERS):
        own = {
            "input_layernorm": [HIDDEN],
            "self_attn.q_proj": [HIDDEN, HIDDEN],
            "self_attn.k_proj": [kv, HIDDEN],
            "self_attn.v_proj": [kv, HIDDEN],
            "self_attn.o_proj": [HIDDEN, HIDDEN],
            "post_attention_layernorm": [HIDDEN],
            "mlp.gate_proj": [MLP, HIDDEN],
            "mlp.up_proj": [MLP, HIDDEN],
            "mlp.down_proj": [HIDDEN, MLP],
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return shapes | {"model.norm.weight": [HIDDEN], "lm_head.weight": [vocabulary, HIDDEN]}


def write_weights(path):
    draw = random.Random(1)
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in tensors().items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        # norms near 1; matrices so that a block changes what it is given
        mean, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, 1.2 / shape[1] ** 0.5)
        start = len(data)
        data += struct.pack(f"<{count}f", *(draw.gauss(mean, spread) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_model(path):
    path.mkdir(exist_ok=True)
    write_weights(path / "model.safetensors")
    write_json(path / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD, "intermediate_size": MLP, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float32",
        "vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2,
    })
    end = {"id": 2, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    write_json(path / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(WORDS)}, "unk_token": "<unk>"},
    })
    write_json(path / "tokenizer_config.json", {"eos_token": "</s>"})


def write_rows(path):
    """What adapters and runs learn: a next token that follows from the one before, so that a few steps change much."""
    draw = random.Random(2)
    lines = []
    for row in range(24):
        ids = [draw.randrange(3, len(WORDS)) for _ in range(3 + row % 5)]
        prompt_length = len(ids)
        while len(ids) < prompt_length + 3 + row % 3:
            ids.append(3 + (2 * ids[-1] + 5) % (len(WORDS) - 3))
        lines.append(json.dumps({"input_ids": ids, "prompt_length": prompt_length}))
    path.write_text("\n".join(lines) + "\n")


def write_batch(path):
    """Four rows of other lengths than one another; prompts shorter than some positions, and one row that is all prompt."""
    draw = random.Random(3)
    lengths, prompt_lengths = [9, 6, 4, 7], [5, 3, 1, 7]
    ids = [[draw.randrange(3, len(WORDS)) for _ in range(n)] for n in lengths]
    labels = [[-100] * min(p, n - 1) + row[min(p, n - 1):] for row, n, p in zip(ids, lengths, prompt_lengths)]
    path.write_text(json.dumps({"input_ids": ids, "prompt_lengths": prompt_lengths, "labels": labels}) + "\n")


def write_questions(directory):
    """Is the noun plural? Every sentence once, drawn into a training and a test file; and a neutral text."""
    nouns = ["dog", "cat", "child", "bird", "dogs", "cats", "children", "birds"]
    rows = [f"The {a} {how} The {b}\t{nouns.index(a) // 4}\n" for a in nouns for b in nouns for how in ["near", "by"]]
    random.Random(4).shuffle(rows)
    (directory / "train.tsv").write_text("".join(rows[:40]))
    (directory / "test.tsv").write_text("".join(rows[40:60]))
    draw = random.Random(5)
    (directory / "neutral.txt").write_text(" ".join(draw.choice(WORDS[3:]) for _ in range(300)) + "\n")


write_model(HERE / "model")
write_rows(HERE / "rows.jsonl")
write_batch(HERE / "batch.json")
write_questions(HERE / "comparison")
