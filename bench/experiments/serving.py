"""What the server costs over the runtime it serves, whether two steps are faster side by side or in one run of the
graph than in turn, and its speed beside llama.cpp's server on the same weights.

    python bench/experiments/serving.py BUNDLE -o bench/results/serving-x86-2cores.json [--llama FILE.gguf] [--turns 8]

Each figure is taken in turn with its counterpart, `--turns` times: median, lowest and highest. BUNDLE needs a context
of 1,300 tokens. --llama: the same weights, for llama.cpp's server; no other part is run then. --llama-server: its
program, built for this machine; else the server of the package xllamacpp.
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
from pathlib import Path

from write_record import kept_record, write_record

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime"), str(ROOT / "bench")]

from served import Server, free_port  # noqa: E402

from merino_runtime.api import open_model  # noqa: E402
from merino_runtime.generation.generate import Done, Token, generate  # noqa: E402
from merino_runtime.generation.text import TextStream  # noqa: E402
from merino_runtime.sampling import GREEDY  # noqa: E402

TOKENS, BEHIND, CLIENTS, WAIT_S = 128, 1000, (1, 2, 4), 60
TEXTS = "/v1/completions"
LLAMA = """
import sys, time, xllamacpp
given = xllamacpp.CommonParams()
given.model.path, given.n_ctx, given.n_parallel, given.verbosity = sys.argv[1], 8192, int(sys.argv[4]), -1
given.cpuparams.n_threads = given.cpuparams_batch.n_threads = int(sys.argv[2])
given.port = int(sys.argv[3])
server = xllamacpp.Server(given)
time.sleep(1e6)
"""


def summary(values):
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "count": len(values)}


def streamed(port, ids, count):
    """Seconds to the first token, and for each one after it, as the client sees them. It does little itself: the
    servers have no core of their own."""
    body = json.dumps({"prompt": ids, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True})
    head = f"POST {TEXTS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    first, last, data = 0.0, 0.0, b""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while part := connection.recv(65536):
            last = time.perf_counter() - start
            first = first or (last if b"data: {" in part else 0.0)
            data += part
    assert b"[DONE]" in data, data[-300:]
    return first, (last - first) / max(1, count - 1)


def direct(model, ids, count):
    """The same without HTTP, text included."""
    start, times = time.perf_counter(), []
    stream = TextStream(model.tokenizer)
    for event in generate(model.backend, ids, max_new_tokens=count, sampling=GREEDY, stream=stream):
        if isinstance(event, Token):
            times.append(time.perf_counter() - start)
        assert not isinstance(event, Done) or event.tokens == count
    return times[0], (times[-1] - times[0]) / max(1, count - 1)


def steps_s(backends, how):
    """Steps a second of all backends, TOKENS each: in turn, with a thread for each, or computed in one run."""
    def run(backend):
        for _ in range(TOKENS):
            backend.step(5)

    for backend in backends:
        backend.truncate(0)
        backend.prefill([1, 2, 3])
    start = time.perf_counter()
    if how == "side by side":
        threads = [threading.Thread(target=run, args=(backend,)) for backend in backends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for _ in range(TOKENS):
            if how == "in one run":
                assert len(backends[0].step_ahead([(backend, 5) for backend in backends])) == len(backends)
            for backend in backends:
                backend.step(5)
    return len(backends) * TOKENS / (time.perf_counter() - start)


def costs(bundle, turns):
    times_ms = {name: [] for name in ("token", "token direct", "first", "first direct")}
    with open_model(bundle) as model, \
            Server(bundle, options=["--cache-mb", 0], threads=model.backend.threads) as server:  # fmt: skip
        vocab = model.backend.vocab
        for turn in range(turns):
            ids = [(index * 31 + turn) % (vocab - 3) + 3 for index in range(BEHIND)]
            streamed(server.port, ids, 1)  # the first turn, which fills the caches
            direct(model, ids, 1)
            again = [*ids, *ids[:32]]
            for name, (first_s, token_s) in (("", streamed(server.port, again, TOKENS)),
                                             (" direct", direct(model, again, TOKENS))):  # fmt: skip
                times_ms["first" + name].append(1000 * first_s)
                times_ms["token" + name].append(1000 * token_s)
        times_ms = {name: summary(values) for name, values in times_ms.items()}
        return {
            "threads": model.backend.threads, "prompt": BEHIND, "ms": times_ms,
            "token_overhead": times_ms["token"]["median"] / times_ms["token direct"]["median"] - 1,
            "first_ratio": times_ms["first"]["median"] / times_ms["first direct"]["median"],
        }  # fmt: skip


def two_steps(bundle, turns):
    """Two requests: both threads for the steps in turn or in one run, or a thread of its own for each."""
    speeds = {"in turn": [], "side by side": [], "in one run": []}
    with open_model(bundle, threads=2) as both, open_model(bundle, threads=1) as one:
        rows, apart = both.backend.rows(2), [one.backend, one.backend.fork()]
        for _ in range(turns):
            for how, values in speeds.items():
                values.append(steps_s(apart if how == "side by side" else rows, how))
    return {name: summary(values) for name, values in speeds.items()}


def memory_mb(bundle, threads):
    """Peak RSS of `generate`, and of a server, behind the same prompt and as many tokens."""
    command = [sys.executable, "-m", "merino_bench", "generate", bundle, "Once upon a time", "-n", str(TOKENS),
               "--json", "--ignore-eos", "-t", str(threads)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT / 'bench'}"}
    lines = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    with Server(bundle, options=["--cache-mb", 0], threads=threads) as server:
        server.post(TEXTS, prompt="Once upon a time", max_tokens=TOKENS, ignore_eos=True)
        served = server.call("GET", "/v1/stats")[1]["peak_rss_mb"]
    return {"generate": json.loads(lines.splitlines()[-1])["peak_rss_mb"], "server": served}


@contextlib.contextmanager
def llama_server(program, path, threads):
    port = free_port()
    count = str(max(CLIENTS))
    own = [sys.executable, "-c", LLAMA, path, str(threads), str(port), count]
    given = [program, "-m", path, "-c", "8192", "-np", count, "-t", str(threads), "--port", str(port)]
    process = subprocess.Popen(given if program else own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT_S
        while not is_ready(port):
            assert process.poll() is None and time.monotonic() < end, "llama.cpp's server does not start"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def is_ready(port):
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def tok_s(port, clients, turn):
    """Tokens a second of all clients together, the prefill of 64 ids each included."""
    def one(index):
        ids = [(at * 29 + 7 * index + turn) % 4000 + 64 for at in range(64)]
        streamed(port, ids, TOKENS)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * TOKENS / (time.perf_counter() - start)


def beside_llama(bundle, program, path, turns, threads):
    speeds = {f"{name}, {clients} clients": [] for name in ("ours", "llama.cpp") for clients in CLIENTS}
    with Server(bundle, options=["--cache-mb", 0, "--slots", max(CLIENTS)], threads=threads) as server, \
            llama_server(program, path, threads) as port:  # fmt: skip
        for turn in range(turns + 1):
            for clients in CLIENTS:
                for name, at in (("ours", server.port), ("llama.cpp", port)):
                    speed = tok_s(at, clients, 2 * turn + clients)
                    if turn:  # the first one warms up
                        speeds[f"{name}, {clients} clients"].append(speed)
    return {name: summary(values) for name, values in speeds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--llama", metavar="FILE")
    parser.add_argument("--llama-server", metavar="PROGRAM")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--disturbed", action="store_true", help="other programs ran beside it")
    given = parser.parse_args()
    description = json.loads((Path(given.bundle) / "bundle.json").read_text())
    name = f"{description['name']} {description['precision']}"
    record = kept_record(given.o, {"schema": 1, "cpus": os.cpu_count(), "bundles": {}})
    kept = record["bundles"].setdefault(name, {})
    if given.llama:
        speeds = beside_llama(given.bundle, given.llama_server, given.llama, given.turns, os.cpu_count())
        kept["llama"] = {"file": Path(given.llama).name, "native": bool(given.llama_server), "tok_s": speeds,
                         "disturbed": given.disturbed}  # fmt: skip
    else:
        kept["costs"] = {**costs(given.bundle, given.turns), "disturbed": given.disturbed}
        kept["steps_s"] = two_steps(given.bundle, given.turns)
        kept["peak_rss_mb"] = memory_mb(given.bundle, kept["costs"]["threads"])
    write_record(given.o, record)
    print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
