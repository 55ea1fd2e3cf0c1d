"""The verbs around installed releases: install, status, rollback, mark-good, untrust, service, board. Results go to
stdout, messages to stderr.

Each function imports what it needs: on a board every module delays the start of `generate` too.
"""
import argparse
import json
import os
from typing import Any, Dict, Optional

from merino_runtime.backends import BACKENDS
from merino_runtime.delivery import releases
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import Verb, say, say_note, write_out

UNSIGNED, DOWNGRADE, ANY_BOARD = ALLOWED = "unsigned", "downgrade", "any-board"
ALLOW = ("accept a package that is unsigned, a downgrade (older than one that was installed), or for any-board "
         "(another one, or slow on this one); repeat for more")
BUNDLE_ARGUMENTS = ("bundle", "bundles", "baselines")


def with_installed(arguments: argparse.Namespace) -> argparse.Namespace:
    """Replace BUNDLE `installed` by its folder. This is the only place, once per command, so that a swap meanwhile
    mixes no two releases. Raise MerinoError if nothing is installed."""
    resolved = vars(arguments)
    for name in BUNDLE_ARGUMENTS:
        value = resolved.get(name)
        if value == releases.INSTALLED:
            resolved[name] = releases.installed_bundle()
        elif isinstance(value, list) and releases.INSTALLED in value:
            folder = releases.installed_bundle()
            resolved[name] = [folder if path == releases.INSTALLED else path for path in value]
    return argparse.Namespace(**resolved)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="folder of releases; default: the one in which this program "
                        "is installed, else /opt/merino for root and ~/.local/share/merino for others")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _root(arguments: argparse.Namespace) -> str:
    if arguments.root == "":
        raise MerinoError("--root '' names no folder. Name one, or leave --root out for the default.")
    return os.path.abspath(arguments.root or releases.default_root())


def _installed_root(arguments: argparse.Namespace) -> str:
    """Return ROOT. Raise MerinoError if nothing was ever installed there: then there is no folder to lock."""
    root = _root(arguments)
    if not os.path.isdir(os.path.join(root, releases.RELEASES)):
        raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
    return root


def _add_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="package, NAME.merino")
    _add_root(parser)
    parser.add_argument("--trust", metavar="NAME.pub", action="append", default=[], dest="keys",
                        help="public key to trust once the package passed its self-test; repeat for more")
    parser.add_argument("--allow", action="append", default=[], choices=ALLOWED, help=ALLOW)
    parser.add_argument("--backend", choices=BACKENDS,
                        help="backend of the release; with tensorrt the engine is built before the self-test. "
                             "Default: tensorrt on a Jetson that has it, else the first that the bundle lists")
    parser.add_argument("--service", action="store_true",
                        help="as root: test the release at each boot, roll back if it fails (systemd)")
    parser.add_argument("--serve", action="store_true",
                        help="as --service, and serve the release on port 8080 of the board itself")
    _add_json(parser)


def _install(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.install import install

    root, as_service = _root(arguments), arguments.service or arguments.serve
    if as_service:
        from merino_runtime.delivery.service import check_service, set_up_service

        check_service(root)
    installed = install(arguments.file, root, arguments.keys, allow_unsigned=UNSIGNED in arguments.allow,
                        force=ANY_BOARD in arguments.allow, report=say, backend=arguments.backend,
                        allow_downgrade=DOWNGRADE in arguments.allow, as_service=as_service)
    if as_service:
        installed["notes"].extend(set_up_service(root, arguments.serve))
    for note in installed["notes"]:
        say_note(note)
    if arguments.json:
        write_out(json.dumps(installed) + "\n")
    else:
        replaced = f" in place of {installed['replaced']}" if installed["replaced"] else ""
        write_out(f"installed {installed['name']} ({installed['bundle']}, {installed['precision']}), "
                  f"release {installed['id']}{replaced}\n"
                  f"run: {installed['launcher']} generate installed \"Once upon a time\"\n")
    return 0


def _add_status(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    _add_json(parser)


def _status(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.probation import status

    report = status(_root(arguments))
    if arguments.json:
        write_out(json.dumps(report) + "\n")
        return 0
    lines = [f"root      {report['root']}",
             *(f"{name:9} {_described(report[name])}" for name in ("current", "previous"))]
    write_out("\n".join(lines) + "\n")
    return 0


def _described(facts: Optional[Dict[str, Any]]) -> str:
    if facts is None:
        return "none"
    if "problem" in facts:
        return f"{facts['id']}  {facts['problem']}"
    state = "good" if facts["good"] else f"on probation, {facts['starts']} starts"
    state += ", left by the service" if facts["gave_up"] else ""
    state += ", signed by a withdrawn key" if facts["withdrawn"] else ""
    return f"{facts['id']}  {facts.get('name')} ({facts.get('bundle')}, {facts.get('precision')}), {state}"


def _rollback(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.probation import rollback, withdrawn_notes

    root = _installed_root(arguments)
    with releases.changing(root, "rollback"):
        to = rollback(root)
        notes = withdrawn_notes(root)
    write_out(f"current is {to.current}, previous is {to.previous}\n")
    for note in notes:
        say_note(note)
    return 0


def _mark_good(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.probation import mark_good

    root = _installed_root(arguments)
    with releases.changing(root, "mark-good"):
        release = mark_good(root)
    write_out(f"{release} is good\n")
    return 0


def _add_untrust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="NAME.pub, the name of a trusted key, or its base64")
    _add_root(parser)


def _untrust(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.keys import key_base64, named_key, trusted_keys, withdraw
    from merino_runtime.delivery.probation import withdrawn_notes
    from merino_runtime.delivery.service import replace_withdrawn_application

    root = _root(arguments)
    if not os.path.isdir(root):
        raise MerinoError(f"there is no {root}, so no key is trusted there. Name the folder of releases with --root.")
    with releases.changing(root, "untrust"):
        key = named_key(root, arguments.key)
        withdraw(root, [key])
        left = len(trusted_keys(root))
        notes = []
        if os.path.isdir(os.path.join(root, releases.RELEASES)):
            notes = withdrawn_notes(root) + replace_withdrawn_application(root)
    write_out(f"{key_base64(key)} is not trusted any more, {left} {'key is' if left == 1 else 'keys are'}\n")
    for note in notes:
        say_note(note)
    if not left:
        say_note("no key is trusted now: the next install needs --trust NAME.pub")
    return 0


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", choices=("begin", "test", "end"),
                        help="begin: count the boot, roll back a release that keeps failing; test: the self-test; end: "
                             "mark the release good")
    _add_root(parser)


def _service(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery import service

    steps = {"begin": service.begin_start, "test": service.try_release, "end": service.end_start}
    steps[arguments.step](_installed_root(arguments), say)
    return 0


def _board(arguments: argparse.Namespace) -> int:
    from merino_runtime.delivery.fit import machine_values, this_machine
    from merino_runtime.delivery.keys import key_base64, trusted_keys
    from merino_runtime.delivery.probation import status
    from merino_runtime.delivery.service import service_root

    root = _root(arguments)
    current = status(root)["current"] or {"problem": "none is installed"}
    paths = (root, os.path.join(root, releases.CURRENT, releases.APP))
    write_out(json.dumps({
        "machine": machine_values(this_machine(root)), "root": root,
        "current": None if "problem" in current else current["id"],
        "foreign": next(filter(None, map(releases.changeable, paths)), None), "service": service_root(),
        "keys": [key_base64(key.key) for key in trusted_keys(root)]}) + "\n")
    return 0


VERBS = (
    Verb("install", "install a package: verified, self-tested, then swapped in", _add_install, _install),
    Verb("status", "print the installed releases", _add_status, _status),
    Verb("rollback", "swap the installed release with the previous one", _add_root, _rollback),
    Verb("mark-good", "end the probation of the installed release", _add_root, _mark_good),
    Verb("untrust", "stop trusting a public key", _add_untrust, _untrust),
    Verb("service", "run one step of merino.service", _add_service, _service),
    Verb("board", "describe this machine as JSON, for `merino-edge flash`", _add_root, _board),
)
