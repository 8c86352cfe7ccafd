"""Data files as pandas and pyarrow write them, and what they read back: tests/oracle/data.

writes: data
python: reference

    python3 -m venv venv && venv/bin/pip install pandas==2.3.3 pyarrow==22.0.0 zstandard==0.25.0
    venv/bin/python make_data.py OUT_DIR

    FILE             the same few rows in the shapes and compressions that people have
    truth.json       FILE: its rows, by column name; in CSV and TSV every value is a text
    versions.json    what wrote them
"""

import gzip
import json
import sys
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import zstandard

ASKED = [
    {"prompt": "Is 7 prime?", "completion": "Yes.", "category": "maths", "score": 0.5},
    {"prompt": "Say \"hi, you\"\nin French", "completion": "Salut, toi – ça va ?", "category": "language", "score": None},
    {"prompt": "1, 2; 3", "completion": "4\tand 5", "category": "maths", "score": -2.0},
]
TALKS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "n": 1},
    {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "so?"}, {"role": "assistant", "content": None}], "n": None},
]
SHAREGPT = [
    {"id": "a1", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    {"id": "a2", "conversations": [{"from": "system", "value": "be"}, {"from": "human", "value": "so"}, {"from": "gpt", "value": "fine"}]},
]


def texts(rows):
    """As CSV has them: nothing is an empty text."""
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def parquet(path, rows, **options):
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, **options)
    return pyarrow.parquet.read_table(path).to_pylist()


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    truth = {}
    truth["snappy.parquet"] = parquet(out / "snappy.parquet", ASKED, compression="snappy")
    truth["zstd.parquet"] = parquet(out / "zstd.parquet", ASKED, compression="zstd", use_dictionary=False)
    truth["gzip-v2.parquet"] = parquet(out / "gzip-v2.parquet", ASKED, compression="gzip", data_page_version="2.0")
    truth["groups.parquet"] = parquet(out / "groups.parquet", ASKED, compression="none", row_group_size=1)
    truth["messages.parquet"] = parquet(out / "messages.parquet", TALKS)
    truth["sharegpt.parquet"] = parquet(out / "sharegpt.parquet", SHAREGPT)

    frame = pandas.DataFrame(ASKED)
    frame.to_csv(out / "pandas.csv", index=False)
    truth["pandas.csv"] = texts(ASKED)
    frame.to_csv(out / "excel.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    truth["excel.csv"] = texts(ASKED)
    frame.to_csv(out / "pandas.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
    truth["pandas.csv.gz"] = texts(ASKED)
    plain = frame[["prompt", "category"]].iloc[[0, 2]]
    plain.to_csv(out / "pandas.tsv", index=False, sep="\t")
    truth["pandas.tsv"] = texts(plain.to_dict("records"))
    frame.to_json(out / "columns.json")
    frame.to_json(out / "records.json", orient="records", indent=1)
    frame.to_json(out / "lines.jsonl", orient="records", lines=True, force_ascii=False)
    (out / "list-columns.json").write_text(json.dumps(frame.to_dict("list")).replace("NaN", "null"))
    (out / "data.json").write_text(json.dumps({"version": "1", "data": ASKED}, indent=2))
    for name in ["columns.json", "records.json", "lines.jsonl", "list-columns.json", "data.json"]:
        truth[name] = ASKED
    lines = (out / "lines.jsonl").read_bytes()
    # what is within says what it is, not the name
    (out / "gzip.jsonl").write_bytes(gzip.compress(lines[:200], mtime=0) + gzip.compress(lines[200:], mtime=0))
    (out / "zstd.jsonl").write_bytes(zstandard.ZstdCompressor().compress(lines))
    truth["gzip.jsonl"] = truth["zstd.jsonl"] = ASKED
    (out / "utf-16.jsonl").write_bytes(lines.decode().encode("utf-16"))
    (out / "latin-1.csv").write_bytes("prompt,completion\ncaf\u00e9,th\u00e9\n".encode("latin-1"))

    (out / "truth.json").write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n")
    versions = {module.__name__: module.__version__ for module in (pandas, pyarrow, zstandard)}
    (out / "versions.json").write_text(json.dumps(versions) + "\n")


main()
