"""What transformers makes of GGUF files with SentencePiece vocabularies: tests/oracle/gguf_tokenizers.

writes: gguf_tokenizers
python: today

    python3 -m venv venv
    venv/bin/pip install torch==2.11.0 transformers==5.24.0 sentencepiece==0.2.3 gguf==0.19.0 numpy
    venv/bin/python make_gguf_tokenizers.py OUT_DIR

Small SentencePiece models are trained and written as GGUF files as llama.cpp's converter writes them: NAME.gguf, of architecture llama, with one
tensor of token embeddings. gguf_tokenizers.json holds per NAME a list of {text, ids, decoded}: ids without special tokens around them; decoded
is null where SentencePiece has an unknown token to show.
    merged      as Llama 2's: merges, bytes, a space before every text; control and user-defined tokens. By transformers.
    gemma       as Gemma's: pad, eos, bos, unk in this order, no space before, user-defined runs of spaces and lines, spelled with real spaces in
                the file. By transformers, which is shown the same file under the architecture gemma2.
    unknown     as `merged` without bytes: what is not in the vocabulary is one unknown token for a run of it. By SentencePiece:
                transformers 5.24 leaves such characters out.
    unigram     the best sum of scores, some characters mapped to others, superfluous spaces left out. By SentencePiece.
    unigram_bytes  the same without either, with bytes. By SentencePiece.
Where transformers is asked, SentencePiece is asked too for the texts without special tokens and without a space at their beginning, which
transformers does not double: both have to agree. "versions" holds the versions, "added" what bos and eos put around the first text of `merged`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import sentencepiece
import transformers
from gguf import GGUFWriter
from transformers import AutoTokenizer

WORDS = """the model reads a text and keeps what it has seen in a small subspace of its hidden states
an edit of the prompt changes the reply while the frozen weights stay as they were
tokens are merged in the order of their scores, the best pair first, and bytes stand in for what has no piece
numbers such as 0 1 2 3 4 5 6 7 8 9 10 2024 3.14 are split into digits or not, as the vocabulary was trained
Über Straßen und Brücken gehen wir morgen früh nach Köln, naïve cafés inbegriffen
return x + y * (z - 1) if a == b else None  # a comment, with symbols: {}[]<>;:'"!?
one two three four five six seven eight nine ten eleven twelve""".split("\n")

TEXTS = [
    "the model reads a text",
    "an edit of the prompt, and 2024 tokens!",
    "Über Straßen nach Köln",
    "naïve cafés",
    "two  spaces, three   spaces, and    four",
    "a line\nand another\n\nand a third\t with a tab",
    "snow \u2603 and \u2603\u2603 twice, \u65e5\u672c\u8a9e, \U0001f600",
    "x==y and <0x0A> and <unk and s>",
    "",
    "a",
    "trailing space ",
]
SPECIAL = [
    " leading space",
    "   three leading spaces",
    " ",
    "\u2581the space's own letter",
    "<s>the model</s>",
    "the model<turn>reads <tool>a text",
    "the<tool>model <tool> reads\n\n<turn> a text",
    "<unk> and <bos>the model<eos>",
    "<tool>",
]


def train(folder, name, **options):
    """A SentencePiece model of the words above."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(WORDS * 4) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / name), num_threads=1, minloglevel=2, hard_vocab_limit=False,
        max_sentence_length=4192, **options)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))


def token_type(pieces, i, user_defined):
    kinds = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_unused, 5), (pieces.is_byte, 6)]
    found = next((kind for test, kind in kinds if test(i)), None)
    return found or (4 if pieces.id_to_piece(i) in user_defined else 1)


def write(path, pieces, model, user_defined=(), architecture="llama", charsmap=None, **flags):
    """The GGUF file of a vocabulary."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(2)
    writer.add_feed_forward_length(2)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    n = pieces.get_piece_size()
    types = [token_type(pieces, i, user_defined) for i in range(n)]
    texts = [pieces.id_to_piece(i) for i in range(n)]
    # the converter writes the spaces of user-defined tokens as they are
    texts = [text.replace("\u2581", " ") if own == 4 else text for text, own in zip(texts, types)]
    writer.add_token_list([text.encode("utf-8") for text in texts])
    writer.add_token_scores([pieces.get_score(i) for i in range(n)])
    writer.add_token_types(types)
    for kind, id in (("bos", pieces.bos_id()), ("eos", pieces.eos_id()), ("unk", pieces.unk_id()), ("pad", pieces.pad_id())):
        if id >= 0:
            getattr(writer, f"add_{kind}_token_id")(id)
    if "prefix" in flags:
        writer.add_add_space_prefix(flags["prefix"])
    if "bos" in flags:
        writer.add_add_bos_token(flags["bos"])
    if "eos" in flags:
        writer.add_add_eos_token(flags["eos"])
    if flags.get("strip"):
        writer.add_remove_extra_whitespaces(True)
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)
    writer.add_tensor("token_embd.weight", np.zeros((n, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def field(message, wanted):
    """The bytes of a field of a protocol buffer's message: of the model, 3 is the normalizer; of it, 2 the map of characters."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 2:
            length = number()
            at += length
            if tag >> 3 == wanted:
                return message[at - length:at]
        elif tag & 7 == 5:
            at += 4
        else:
            number()
    raise KeyError(wanted)


def by_transformers(folder, file, pieces):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    cases = []
    for text in TEXTS + SPECIAL:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if text in TEXTS:
            assert ids == pieces.encode(text), (file, text, ids, pieces.encode(text))
        cases.append(dict(text=text, ids=ids, decoded=tokenizer.decode(ids)))
    return cases, tokenizer


def by_sentencepiece(pieces):
    cases = []
    for text in TEXTS:
        if pieces.piece_to_id("<0x0A>") != pieces.unk_id() and "<0x0A>" in text:
            continue  # the Unigram of Hugging Face's tokenizers takes this for the byte; SentencePiece does not
        ids = pieces.encode(text)
        has_unknown = pieces.unk_id() in ids  # which SentencePiece shows as a sign of its own
        cases.append(dict(text=text, ids=ids, decoded=None if has_unknown else pieces.decode(ids)))
    return cases


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    cases = {"versions": dict(transformers=transformers.__version__, sentencepiece=sentencepiece.__version__, gguf="0.19.0")}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        merged = dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                      allow_whitespace_only_pieces=True, character_coverage=1.0, vocab_size=480)
        tool = ["<tool>"]

        pieces = train(folder, "merged", **merged, control_symbols=["<turn>"], user_defined_symbols=tool, byte_fallback=True)
        write(out / "merged.gguf", pieces, "llama", tool, prefix=True, bos=True, eos=False)
        cases["merged"], tokenizer = by_transformers(out, "merged.gguf", pieces)
        cases["added"] = tokenizer.encode(TEXTS[0])

        runs = ["\n\n", *("\u2581" * n for n in range(2, 6)), *tool]
        pieces = train(folder, "gemma", **merged, byte_fallback=True, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
                       pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
                       user_defined_symbols=runs, control_symbols=["<turn>"])
        write(out / "gemma.gguf", pieces, "llama", runs, prefix=False, bos=True, eos=False)
        write(folder / "gemma.gguf", pieces, "llama", runs, architecture="gemma2", prefix=False, bos=True, eos=False)
        cases["gemma"], _ = by_transformers(folder, "gemma.gguf", pieces)

        pieces = train(folder, "unknown", **merged, control_symbols=["<turn>"], user_defined_symbols=tool)
        write(out / "unknown.gguf", pieces, "llama", tool, bos=False, eos=True)
        cases["unknown"] = by_sentencepiece(pieces)

        # a small map in place of nmt_nfkc's: ü to u, é to e, a tab to a space
        rules = folder / "rules.tsv"
        rules.write_text("FC\t75\nE9\t65\n9\t20\n")
        pieces = train(folder, "unigram", model_type="unigram", vocab_size=160, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
                       normalization_rule_tsv=str(rules))
        normalizer = field((folder / "unigram.model").read_bytes(), 3)
        write(out / "unigram.gguf", pieces, "t5", strip=True, charsmap=field(normalizer, 2))
        cases["unigram"] = by_sentencepiece(pieces)

        pieces = train(folder, "unigram_bytes", model_type="unigram", vocab_size=420, character_coverage=1.0, byte_fallback=True,
                       normalization_rule_name="identity", remove_extra_whitespaces=False)
        write(out / "unigram_bytes.gguf", pieces, "t5", prefix=True, bos=False, eos=False)
        cases["unigram_bytes"] = by_sentencepiece(pieces)
    text = json.dumps(cases, indent=1, ensure_ascii=True)
    (out / "gguf_tokenizers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
