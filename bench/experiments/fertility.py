"""Bytes of text per token, and the size of tokenizer.json, at each size of the vocabulary.

    python bench/experiments/fertility.py --data TEXT... --held-out TEXT... [--tokenizer tokenizer.json] -o RECORD

A byte-level BPE of each size is trained on all of --data, as `merino-edge train --vocab` does, and counts the tokens of
each held-out text. A ready tokenizer may stand beside them. `merino_edge/design/axes/vocabulary.py` holds the means
over the held-out texts, which the search uses.
"""

import argparse
import statistics
from pathlib import Path

from write_record import write_record

from merino_edge.text.documents import read_documents
from merino_edge.text.tokenizer import load_tokenizer, train_tokenizer
from merino_runtime.errors import MerinoError

VOCABS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 50257)


def counted(tokenizer, held_out):
    """A row of the record: bytes per token of each text, their mean, and the bytes of tokenizer.json."""
    per_text = {}
    for path in held_out:
        documents = read_documents([path])
        encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
        bytes_ = sum(len(document.encode()) for document in documents)
        per_text[path.name] = round(bytes_ / sum(len(encoding.ids) for encoding in encodings), 4)
    return {
        "vocab": tokenizer.get_vocab_size(),
        "bytes_per_token": round(statistics.mean(per_text.values()), 4),
        **per_text,
        "tokenizer_json_bytes": len(tokenizer.to_str(pretty=True).encode()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, nargs="*", default=[])
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS)
    parser.add_argument("-o", type=Path, required=True)
    arguments = parser.parse_args()
    documents = read_documents(arguments.data)
    record = {"data": [path.name for path in arguments.data], "trained": [], "ready": []}
    for vocab in arguments.vocab:
        try:
            record["trained"].append(counted(train_tokenizer(documents, vocab), arguments.held_out))
        except MerinoError as error:
            record["trained"].append({"vocab": vocab, "failed": str(error)})
        print(record["trained"][-1], flush=True)
    for path in arguments.tokenizer:
        record["ready"].append({"name": path.name, **counted(load_tokenizer(path), arguments.held_out)})
        print(record["ready"][-1], flush=True)
    command = "python bench/experiments/fertility.py --data TEXT... --held-out TEXT..."
    write_record(arguments.o, record, "Bytes of text per token at each size of the vocabulary", command)


if __name__ == "__main__":
    main()
