"""The verb `serve`: its options, checks before anything is loaded, and the life of the server."""
import argparse
import os
import threading
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.backends.choice import BACKENDS
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import say, say_note

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
LEAST_KEY = 8  # characters
PORT, WAITING = 8080, 32
OPENING = ("threads", "prefill_threads", "verify", "allow_slow", "backend")  # options of `open_model`


class ServeRequest(NamedTuple):
    bundles: Tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = PORT
    api_key_file: Optional[str] = None
    slots: Optional[int] = None
    memory_mb: Optional[float] = None
    queue: int = WAITING
    max_seconds: Optional[float] = None
    max_temperature: Optional[float] = None
    cache_dir: Optional[str] = None
    cache_mb: float = 512.0
    threads: Optional[int] = None
    prefill_threads: Optional[int] = None
    verify: bool = True
    allow_slow: bool = False
    backend: Optional[str] = None


# What the board's command line and the workstation's declare: name, type, help.
OPTIONS: Tuple[Tuple[str, type, str], ...] = (
    ("host", str, "address to serve on; any other than this machine's own needs --api-key-file"),
    ("port", int, "port to serve on; 0: any free one"),
    ("api_key_file", str, "file with the API keys that are accepted, one per line"),
    ("slots", int, "number of KV caches for requests side by side; default: 4, or what memory allows"),
    ("memory_mb", float, "memory of all KV caches in MB; default: half of the available memory"),
    ("queue", int, "number of requests that may wait; more get status 429"),
    ("max_seconds", float, "wall-clock limit of a request, the wait included; default: none"),
    ("max_temperature", float, "degrees Celsius of the hottest sensor above which generation pauses; default: none"),
    ("cache_dir", str, "folder of the prefix cache on disk; default: merino/serve in the user's cache"),
    ("cache_mb", float, "size limit of the prefix cache on disk in MB; 0: none"),
)


def keys_of(path: Optional[str]) -> Tuple[str, ...]:
    if path is None:
        return ()
    from merino_runtime.io.json_file import read_text

    lines = [line.strip() for line in read_text(path, "a file of API keys", "Write one key per line into it.", 2 ** 16)
             .splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or min(map(len, keys)) < LEAST_KEY:
        raise MerinoError(f"{path} must have API keys of at least {LEAST_KEY} characters, one per line. Make one: "
                          f"python3 -I -c 'import secrets; print(secrets.token_urlsafe())' > {path}")
    return keys


def check_address(host: str, keys: Sequence[str]) -> None:
    """Raise MerinoError for an address that other machines reach, if there is no key."""
    if host not in LOCAL_HOSTS and not keys:
        raise MerinoError(
            f"--host {host} lets everyone who reaches this machine use the model. Give the clients a key: "
            "python3 -I -c 'import secrets; print(secrets.token_urlsafe())' > key.txt && chmod 600 key.txt, then add "
            "--api-key-file key.txt. Without --host only programs on this machine reach it.")


def run_serve(request: ServeRequest, sensors: Any = None) -> int:
    """Serve until SIGINT or SIGTERM. Raise MerinoError if the server cannot start. sensors: a `burden.Sensors`."""
    keys = keys_of(request.api_key_file)
    check_address(request.host, keys)
    if request.queue < 0:
        raise MerinoError(f"--queue is {request.queue}, allowed: 0 or more.")
    if request.max_temperature is not None and not (sensors and sensors.temperatures_c()):
        raise MerinoError("--max-temperature needs a temperature sensor, and none can be read here. Leave it out.")
    if request.slots is not None and request.slots < 1:
        raise MerinoError(f"--slots is {request.slots}, allowed: 1 or more.")
    from merino_runtime.bundle.requirements import require
    from merino_runtime.io.heap import keep_one_heap, keep_small_pages

    keep_one_heap()
    keep_small_pages()
    require("numpy")
    from merino_runtime.serving import models
    from merino_runtime.serving.application import Application, Settings
    from merino_runtime.serving.burden import Sensors
    from merino_runtime.serving.connections import listening
    from merino_runtime.serving.http import server_of, stop_at_signals
    from merino_runtime.serving.page import page

    known = models.described(request.bundles)
    count = models.slots_of([model.bundle for model in known.values()], request.slots, request.memory_mb)
    options = {name: getattr(request, name) for name in OPENING}
    application = Application(known, Settings(
        keys=keys, local=request.host in LOCAL_HOSTS, most_waiting=request.queue, limit_s=request.max_seconds,
        ceiling_c=request.max_temperature), sensors or Sensors(), page())
    server = server_of(application)
    listener = listening(request.host, request.port)
    shown = f"[{request.host}]" if ":" in request.host else request.host
    say(f"serving {', '.join(known)} on http://{shown}:{listener.getsockname()[1]}")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = request.cache_dir or os.path.join(base, "merino/serve")
    # Connections are served on this thread, models on another. A load that fails ends both.
    faults: List[BaseException] = []

    def work() -> None:
        try:
            application.serve_models(
                lambda model: models.load(model, count, options, folder, cache_mb=request.cache_mb, say=say_note))
        except BaseException as error:
            faults.append(error)
            server.should_exit = True

    worker = threading.Thread(target=work, name="models", daemon=True)
    worker.start()
    stop_at_signals(server)
    try:
        server.run(sockets=[listener])
    finally:
        application.scheduler.close()
        worker.join(10)
        listener.close()
    if faults:
        raise faults[0]
    for model in application.models.values():
        models.close(model)
    say("stopped")
    return 0


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE",
                        help="bundle folders; `.` is the current one, `installed` the bundle of the installed release")
    for name, kind, text in OPTIONS:
        default = ServeRequest._field_defaults[name]
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=default,
                            metavar="TEXT" if kind is str else "N",
                            help=text if default is None else text + " (default %(default)s)")
    parser.add_argument("--no-verify", action="store_false", dest="verify",
                        help="skip the hash check of the bundles' files")
    parser.add_argument("--backend", choices=BACKENDS,
                        help="backend; default: tensorrt on a Jetson that has it, else the first that a bundle lists")
    parser.add_argument("-t", "--threads", type=int, metavar="N",
                        help="number of threads; default: the bundle's setting")
    parser.add_argument("--prefill-threads", type=int, metavar="N",
                        help="number of threads for prefill; default: as -t, or the bundle's setting")
    parser.add_argument("--allow-slow", action="store_true", help="run a format whose instructions this CPU lacks")


def request_of(arguments: argparse.Namespace) -> ServeRequest:
    return ServeRequest(
        bundles=tuple(arguments.bundles), host=arguments.host, port=arguments.port,
        api_key_file=arguments.api_key_file, slots=arguments.slots, memory_mb=arguments.memory_mb,
        queue=arguments.queue, max_seconds=arguments.max_seconds, threads=arguments.threads,
        prefill_threads=arguments.prefill_threads, verify=arguments.verify, allow_slow=arguments.allow_slow,
        backend=arguments.backend, max_temperature=arguments.max_temperature, cache_dir=arguments.cache_dir,
        cache_mb=arguments.cache_mb)
