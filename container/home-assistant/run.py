"""Starts the server with the add-on's options: `run.py [DATA SHARES]`, by default /data /share.

The Supervisor writes options.json into /data, readable by root alone. The key goes into a file that the server's user
may read. As that user the server takes this process's place, so that the Supervisor's SIGTERM reaches it.
"""

import json
import os
import sys
from pathlib import Path

USER = 10001


def main() -> None:
    data, share = map(Path, sys.argv[1:] or ("/data", "/share"))
    options = json.loads((data / "options.json").read_text(encoding="utf-8"))
    bundle = (share / options["bundle"]).resolve()
    if not (bundle / "bundle.json").is_file():
        sys.exit(f"there is no bundle in {bundle}: copy the folder that `merino-edge export` wrote there, or name it in"
                 " the option bundle, as seen from the folder share")  # fmt: skip
    keys, cache = data / "keys", data / "cache"  # only root can replace the keys
    keys.write_text(f"{options['api_key']}\n", encoding="utf-8")
    cache.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("merino")), "serve", str(bundle), "--host", "0.0.0.0"]
    command += ["--api-key-file", str(keys), "--set", f"cache_dir={cache}"]
    if "max_seconds" in options:
        command += ["--set", f"max_seconds={options['max_seconds']}"]
    keys.chmod(0o640)
    if os.getuid() == 0:
        data.chmod(0o711)
        os.chown(keys, 0, USER)
        for path in (cache, *cache.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    os.environ["HOME"] = str(cache)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
