"""What the server costs over the runtime it serves: time per token, the first token of a second turn, memory; and
whether two steps side by side are faster than one after the other.

    python bench/experiments/serving.py BUNDLE [--turns 8]

Each figure is taken in turn with its counterpart, `--turns` times, and printed as the median with the lowest and the
highest. BUNDLE needs a context of 1,300 tokens for the second turn.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime"), str(ROOT / "bench")]

from served import Server  # noqa: E402

from merino_runtime.api import open_model  # noqa: E402
from merino_runtime.generation.generate import Done, Token, generate  # noqa: E402
from merino_runtime.io.board import peak_rss_mb  # noqa: E402
from merino_runtime.sampling import GREEDY  # noqa: E402

TOKENS, BEHIND = 128, 1000
TEXTS = "/v1/completions"


def shown(name, values, unit):
    print(f"{name:58} {statistics.median(values):9.3f} {unit}  [{min(values):.3f}, {max(values):.3f}]", flush=True)


def streamed(server, ids, count):
    """Seconds to the first token, and for each one after it, as the client sees them."""
    body = {"prompt": ids, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
    start = time.perf_counter()
    connection, response = server.open("POST", TEXTS, body)
    times = [time.perf_counter() - start for line in response
             if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["finish_reason"] is None]
    connection.close()
    return times[0], (times[-1] - times[0]) / max(1, count - 1)


def direct(model, ids, count):
    """The same without HTTP."""
    start, times = time.perf_counter(), []
    for event in generate(model.backend, ids, max_new_tokens=count, sampling=GREEDY):
        if isinstance(event, Token):
            times.append(time.perf_counter() - start)
        assert not isinstance(event, Done) or event.tokens == count
    return times[0], (times[-1] - times[0]) / max(1, count - 1)


def steps_s(models, together):
    """Steps a second of all models, TOKENS each: one thread in turns, or a thread for each."""
    for model in models:
        model.backend.truncate(0)
        model.backend.prefill([1, 2, 3])
    start = time.perf_counter()
    if together:
        threads = [threading.Thread(target=lambda m=m: [m.backend.step(5) for _ in range(TOKENS)]) for m in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for _ in range(TOKENS):
            for model in models:
                model.backend.step(5)
    return len(models) * TOKENS / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    found = {name: [] for name in ("token", "token direct", "first", "first direct", "one thread", "two threads")}
    with open_model(arguments.bundle) as model, Server(
        arguments.bundle, options=["--cache-mb", 0], threads=model.backend.threads
    ) as server, model.fork() as twin:
        own_mb, vocab = peak_rss_mb(), model.backend.vocab
        for turn in range(arguments.turns):
            ids = [(place * 31 + turn) % (vocab - 3) + 3 for place in range(BEHIND)]
            room = model.backend.context - BEHIND - 40
            count = min(TOKENS, room) if room > 1 else 0
            if count:
                streamed(server, ids, 1)  # the first turn, which fills the caches
                direct(model, ids, 1)
                again = [*ids, *ids[:32]]
                for name, (first_s, token_s) in (("", streamed(server, again, count)),
                                                 (" direct", direct(model, again, count))):
                    found["first" + name].append(1000 * first_s)
                    found["token" + name].append(1000 * token_s)
            found["one thread"].append(steps_s([model, twin], together=False))
            found["two threads"].append(steps_s([model, twin], together=True))
        if found["token"]:
            shown("per token, by HTTP, ms", found["token"], "ms")
            shown("per token, without, ms", found["token direct"], "ms")
            shown(f"first token of a second turn behind {BEHIND}, by HTTP, ms", found["first"], "ms")
            shown(f"first token of a second turn behind {BEHIND}, without, ms", found["first direct"], "ms")
        shown("two requests, one thread in turns, steps/s", found["one thread"], "/s")
        shown("two requests, a thread each, steps/s", found["two threads"], "/s")
        server_mb = server.call("GET", "/v1/stats")[1]["peak_rss_mb"]
        print(f"peak RSS: server {server_mb:.0f} MB, this process, which has the model too, {own_mb:.0f} MB;"
              f" {os.cpu_count()} CPUs")  # fmt: skip


if __name__ == "__main__":
    main()
