"""The server beside llama-server on the same weights: tokens per second, time to the first token and longest gap.

    python bench/experiments/serving.py BUNDLE FILE.gguf --llama-server PROGRAM -o bench/results/serving-clients.json

FILE.gguf holds the weights that BUNDLE was exported from, in a format of equal size; BUNDLE needs a context of 1,152
tokens. Nothing else may run. PROGRAM is built for this machine, from the sources in the sdist of llama-cpp-python:

    cmake -S vendor/llama.cpp -B build -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF && cmake --build build -t llama-server

Clients send a prompt of their own each, all at once, and read a stream. Both servers take turns.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

from write_record import write_record

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from served import Server, free_port  # noqa: E402

CLIENTS, PROMPTS, TOKENS, CONTEXT = (1, 4, 16), {"short": 64, "long": 1024}, 64, 1152


def streamed(port: int, ids: list[int], arrivals: list[float]) -> None:
    """Add the times at which tokens of one answer arrive. The client does little: the servers have no core of their
    own."""
    body = json.dumps({"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    last = b""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while part := connection.recv(65536):
            last = last[-20:] + part
            if b"data: {" in part:
                arrivals.append(time.perf_counter())
    assert b"[DONE]" in last, last


def measured(port: int, clients: int, length: int, turn: int) -> dict[str, float]:
    """Return tokens per second of all clients together, prefill included, and their worst times in milliseconds."""
    arrivals: list[list[float]] = [[] for _ in range(clients)]
    prompts = [[(29 * at + 97 * client + 389 * turn) % 4000 + 64 for at in range(length)] for client in range(clients)]
    threads = [threading.Thread(target=streamed, args=(port, *pair)) for pair in zip(prompts, arrivals, strict=True)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.perf_counter()
    gaps = [later - earlier for times in arrivals for earlier, later in pairwise(times)]
    firsts = [times[0] - start for times in arrivals]
    return {"tok_s": clients * TOKENS / (end - start), "first_ms": 1000 * statistics.median(firsts),
            "longest_gap_ms": 1000 * max(gaps)}  # fmt: skip


@contextlib.contextmanager
def llama_server(program: str, path: str, threads: int):
    port, slots = free_port(), max(CLIENTS)
    command = [program, "-m", path, "-c", str(CONTEXT * slots), "-np", str(slots), "-t", str(threads),
               "--port", str(port), "--cache-ram", "0"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            assert process.poll() is None, "llama-server does not start"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def is_ready(port: int) -> bool:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection, \
            contextlib.suppress(OSError):  # fmt: skip
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("file")
    parser.add_argument("--llama-server", required=True, metavar="PROGRAM")
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    threads = os.cpu_count() or 1
    results: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with Server(given.bundle, options=["--set=cache_mb=0", "--slots", max(CLIENTS)], threads=threads) as server, \
            llama_server(given.llama_server, given.file, threads) as port:  # fmt: skip
        for turn in range(given.turns + 1):
            for kind, length in PROMPTS.items():
                for clients in CLIENTS:
                    for engine, at in (("merino", server.port), ("llama-server", port)):
                        values = measured(at, clients, length, turn)
                        if turn:  # the first one warms up
                            results.setdefault((kind, clients, engine), []).append(values)
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for (kind, clients, engine), values in results.items():
        row = rows.setdefault((kind, clients), {"prompt": PROMPTS[kind], "clients": clients})
        prefix = "" if engine == "merino" else "llama_server_"
        row.update({prefix + name: round(statistics.median(value[name] for value in values), 1) for name in values[0]})
    for row in rows.values():
        row["ratio"] = round(row["tok_s"] / row["llama_server_tok_s"], 2)
    claim = "Tokens per second, time to the first token and longest gap of 1, 4 and 16 clients, beside llama-server"
    command = f"python bench/experiments/serving.py BUNDLE {Path(given.file).name} --llama-server PROGRAM -o {given.o}"
    write_record(given.o, {"tokens": TOKENS, "turns": given.turns, "rows": list(rows.values())}, claim, command)


if __name__ == "__main__":
    main()
