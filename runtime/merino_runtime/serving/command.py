"""The verb `serve`: its options, checks before anything is loaded, and the life of the server."""
import argparse
import os
import threading
from typing import Any, List, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import say, say_note
from merino_runtime.sampling import OPENING_SETTINGS, read_settings, settings_help
from merino_runtime.serving.access import LOCAL_HOSTS, check_address, keys_of, origins_of

# What the command line declares: name, type, default, help.
OPTIONS: Tuple[Tuple[str, type, Any, str], ...] = (
    ("host", str, "127.0.0.1", "address to serve on; any other than this machine's own needs --api-key-file"),
    ("port", int, 8080, "port to serve on; 0: any free one"),
    ("api_key_file", str, None, "file with the API keys that are accepted, one per line"),
    ("allow_origin", str, None,
     "origins of web pages that may use the server, such as https://ui.example, with commas; *: all"),
    ("slots", int, None, "number of KV caches for requests side by side; default: what memory allows, up to 16"),
)
# What `--set NAME=VALUE` takes.
SETTINGS = dict(
    OPENING_SETTINGS,
    memory_mb=(float, "memory of all KV caches in MB; default: half of the available memory"),
    queue=(int, "number of requests that may wait; more get status 429; default 32"),
    max_seconds=(float, "wall-clock limit of a request, the wait included; default: none"),
    max_temperature=(float, "degrees Celsius of the hottest sensor above which generation pauses; default: none"),
    cache_dir=(str, "folder of the prefix cache on disk; default: merino/serve in the user's cache"),
    cache_mb=(float, "size limit of the prefix cache on disk in MB; 0: none; default 512"),
)
# Option or setting, least and greatest value.
BOUNDS = (("port", 0, 65535), ("slots", 1, 1024), ("memory_mb", 0, 1e9), ("queue", 0, 1e6), ("max_seconds", 0.1, 1e9),
          ("max_temperature", 0, 200), ("cache_mb", 0, 1e9))


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE",
                        help="bundle folders; `.` is the current one, `installed` the bundle of the installed release")
    for name, kind, default, text in OPTIONS:
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=default,
                            metavar="TEXT" if kind is str else "N",
                            help=text if default is None else text + " (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help=settings_help(SETTINGS))


def run_serve(arguments: argparse.Namespace, sensors: Any = None) -> int:
    """Serve until SIGINT or SIGTERM. Raise MerinoError if the server cannot start. sensors: a `burden.Sensors`."""
    # 1. What can be refused before anything is loaded.
    keys = keys_of(arguments.api_key_file)
    check_address(arguments.host, keys)
    origins = origins_of(arguments.allow_origin)
    settings = read_settings(arguments.settings, SETTINGS)
    given = dict(vars(arguments), **settings)
    for name, low, high in BOUNDS:
        value = given.get(name)
        if value is not None and not low <= value <= high:  # nor is NaN
            raise MerinoError(f"{'--set ' if name in SETTINGS else '--'}{name} is {value}, allowed: {low} to {high:g}.")
    if "max_temperature" in settings and not (sensors and sensors.temperatures_c()):
        raise MerinoError("--set max_temperature needs a temperature sensor, and none can be read here. Leave it out.")
    # 2. The models' descriptions and the address.
    from merino_runtime.bundle.requirements import require
    from merino_runtime.io.memory import keep_one_heap, keep_small_pages

    keep_one_heap()
    keep_small_pages()
    require("numpy")
    from merino_runtime.serving import models
    from merino_runtime.serving.application import Application, Settings
    from merino_runtime.serving.http import listening, page, server_of, stop_at_signals
    from merino_runtime.serving.metrics import Sensors

    known = models.described(arguments.bundles)
    count = models.slots_of([model.bundle for model in known.values()], arguments.slots, settings.get("memory_mb"))
    options = {name: settings.get(name) for name in OPENING_SETTINGS}
    application = Application(known, Settings(
        keys=keys, origins=origins, local=arguments.host in LOCAL_HOSTS, most_waiting=settings.get("queue", 32),
        limit_s=settings.get("max_seconds"), ceiling_c=settings.get("max_temperature")), sensors or Sensors(), page())
    server = server_of(application)
    listener = listening(arguments.host, arguments.port)
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    say(f"serving {', '.join(known)} on {address}")
    texts = [name for name, model in known.items() if model.bundle.chat is None]
    if texts:
        say_note(f"{', '.join(texts)}: no chat template, so it continues texts. Open {address}/, or use "
                 "/v1/completions; /v1/chat/completions refuses it.")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder, cache_mb = settings.get("cache_dir") or os.path.join(base, "merino/serve"), settings.get("cache_mb", 512.0)
    # 3. Connections are served on this thread, models on another. A load that fails ends both.
    faults: List[BaseException] = []

    def work() -> None:
        try:
            application.serve_models(
                lambda model: models.load(model, count, options, folder, cache_mb=cache_mb, say=say_note))
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
