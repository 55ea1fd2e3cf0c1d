"""One function per verb, which takes the parsed arguments; the board's and the workstation's command lines share it.

Results go to stdout, messages to stderr. `__main__` parses arguments and turns errors into exit codes.
"""
import contextlib
import json
import os
import re
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from merino_runtime.api import LanguageModel, open_model
from merino_runtime.backends import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle, backends_text, cache_formats, load_bundle, own_files
from merino_runtime.bundle.fit import check_bundle_fits, needs_text, unknown_operators
from merino_runtime.bundle.requirements import require
from merino_runtime.bundle.verified import check_and_stamp, check_external_data, check_files_once
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import LONGEST_TEXT_BYTES
from merino_runtime.io import board
from merino_runtime.io.json_file import read_json
from merino_runtime.io.outputs import check_output
from merino_runtime.io.streams import as_text, harmless, say, say_note, stdout_is_terminal, write_lines, write_out
from merino_runtime.sampling import (
    CHAT_SETTINGS,
    GENERATE_SETTINGS,
    OPENING_SETTINGS,
    SAMPLING_SETTINGS,
    GenerateOptions,
    Sampling,
    read_settings,
)

if TYPE_CHECKING:
    from merino_runtime.chat.conversation import ChatOptions

STDIN = "-"  # as PROMPT: read stdin
PROGRAMS = (b"#!", b"\x7fELF", b"PK", b"MZ")  # first bytes of scripts, native code, zip applications

# numpy is imported inside the functions, so that `info` works without it; delivery too, so that `generate`
# starts sooner.


def sampling_of(arguments: Namespace, settings: Dict[str, Any]) -> Sampling:
    return Sampling(temperature=arguments.temperature,
                    **{name: value for name, value in settings.items() if name in SAMPLING_SETTINGS})


def generate_options(arguments: Namespace) -> GenerateOptions:
    """Return the options of the verb `generate`. Raise MerinoError for one that is out of range."""
    settings = read_settings(arguments.settings, GENERATE_SETTINGS)
    return GenerateOptions(
        arguments.max_new_tokens, sampling_of(arguments, settings), stops=[as_text(stop) for stop in arguments.stop],
        ignore_eos=settings.get("ignore_eos", False), overflow=settings.get("overflow", "stop"),
        lookup=settings.get("lookup", True), adapter=settings.get("adapter"),
        json_schema=json_at(arguments.json_schema, "Give a file with a JSON schema."),
        tools=json_at(arguments.tools, 'Give a list of tools: [{"type": "function", "function": {...}}].'))


def run_generate(arguments: Namespace) -> int:
    """Generate. The cache file is read if it exists; otherwise it is written after the prefill."""
    # 1. Check the request before the model is opened.
    options, cache = generate_options(arguments), arguments.cache
    restores = cache is not None and os.path.exists(cache)
    saves = bool(cache) and not restores
    if saves:
        check_output(cache)
    text = prompt_from_stdin() if arguments.prompt in (None, STDIN) else as_text(str(arguments.prompt))
    # 2. Generate. `LanguageModel.generate` encodes the prompt and returns a `Generation`.
    with open_bundle(arguments) as model:
        if restores:
            model.load_cache(cache)
        generation = model.generate(text, **options._asdict())
        event: Any = None
        try:
            for event in generation:
                _write_event(event, arguments.json)
                if saves and model.backend.length:  # the prefill is complete
                    model.save_cache(cache)
                    saves = False
        except KeyboardInterrupt:
            _write_event(generation.measured(), arguments.json)
            raise
    # 3. Warn if a constrained text is incomplete. The last event is a Done.
    if options.constraints and event.stop_reason != "eos":
        say_note(f"the text was cut by {event.stop_reason} and is not complete: allow more tokens with -n, or "
                 "limit the schema's strings and lists by maxLength and maxItems")
    return 0


def open_bundle(arguments: Namespace) -> LanguageModel:
    """Open the bundle with the threads and the backend of `--set`. The settings of `chat` are among `generate`'s."""
    settings = read_settings(arguments.settings, GENERATE_SETTINGS)
    opening: Dict[str, Any] = {name: settings.get(name) for name in OPENING_SETTINGS}
    return open_model(arguments.bundle, say=say_note, **opening)


def json_at(path: Optional[str], remedy: str) -> Any:
    return None if path is None else read_json(path, remedy)


def _write_event(event: Any, as_json: bool) -> None:
    from merino_runtime.generation.generate import Done, PromptCut

    if isinstance(event, PromptCut):
        say_note(f"the prompt has {event.left_out + event.kept} ids, more than the context holds: its first "
                 f"{event.left_out} are left out")
    elif isinstance(event, Done):
        write_out(json.dumps(dict(event._asdict(), done=True)) + "\n" if as_json else "\n")
        say(summary(event))
    else:
        shown = harmless(event.text) if stdout_is_terminal() else event.text
        write_out(json.dumps(event._asdict()) + "\n" if as_json else shown)


def chat_options(arguments: Namespace) -> "ChatOptions":
    """Return the options of the verb `chat`. Raise MerinoError for one that is out of range."""
    from merino_runtime.chat.conversation import ChatOptions

    settings = read_settings(arguments.settings, CHAT_SETTINGS)
    return ChatOptions(
        system=None if arguments.system is None else as_text(arguments.system),
        max_new_tokens=arguments.max_new_tokens, sampling=sampling_of(arguments, settings), no_think=arguments.no_think,
        overflow=settings.get("overflow", "error"), adapter=settings.get("adapter"),
        json_schema=json_at(arguments.json_schema, "Give a file with a JSON schema."))


def run_chat(arguments: Namespace) -> int:
    options = chat_options(arguments)
    with open_bundle(arguments) as model:
        from merino_runtime.chat.session import converse, converse_in_json, write_json

        conversation = model.chat(**options._asdict())
        if arguments.json:
            write_json({"chat": model.bundle.name, "context": model.backend.context, "system": conversation.system})
            return converse_in_json(conversation, own_files(model.bundle))
        return converse(conversation, model.bundle.name, own_files(model.bundle))


def run_selftest(arguments: Namespace) -> int:
    with open_model(arguments.bundle, backend=arguments.backend, say=say_note) as model:
        mismatch = model.selftest()
        bundle = model.bundle
    if mismatch:
        raise MerinoError(
            f"self-test of {bundle.name!r} failed: at position {mismatch.position} of the golden ids "
            f"{mismatch.expected} was expected and {mismatch.actual} came out. Copy or export the bundle "
            "again. If the failure remains, this CPU or this version of the backend computes other logits.")
    write_out(f"ok: {len(bundle.golden.greedy_ids)} greedy ids as expected\n")
    return 0


def run_build_engine(arguments: Namespace) -> int:
    """Build the TensorRT engine of a bundle for this GPU, unless it is there."""
    bundle = load_bundle(arguments.bundle, verify=False)
    check_files_once(bundle)
    choose_backend(bundle, TENSORRT)
    require("numpy")
    from merino_runtime.backends.engine_build import build_engine

    engine = build_engine(bundle, arguments.fp16, arguments.workspace_mb, say)
    write_lines(f"{'built' if engine.built else 'already there'}: {engine.path}\n")
    return 0


def run_verify(arguments: Namespace) -> int:
    """Verify a bundle, or a package and that one of the keys in `trust` signed it."""
    path = arguments.bundle
    if os.path.exists(path) and not os.path.isdir(path):  # a package; bundles are folders
        from merino_runtime.delivery import packed

        return packed.run_verify(path, arguments.trust, arguments.json)
    if arguments.trust:
        raise MerinoError(f"{path} is a bundle's folder, which has no signature. Leave out --trust, or name the packed "
                          "file (NAME.merino).")
    bundle = load_bundle(path, verify=False)
    check_and_stamp(bundle)
    check_external_data(bundle)
    total_bytes, code = sum(file.bytes for file in bundle.files), code_in(bundle)
    if arguments.json:
        write_out(json.dumps({"name": bundle.name, "files": len(bundle.files), "bytes": total_bytes, "code": code,
                              "unknown_kernels": unknown_operators(bundle)}) + "\n")
        return 0
    total_mb = total_bytes / board.MB
    write_lines(f"ok: {bundle.name}, {len(bundle.files)} files, {total_mb:.1f} MB, every sha256 as expected; "
                f"code: {_shown_code(code)}; kernels: {_shown_kernels(bundle)}\n")
    return 0


def run_info(arguments: Namespace) -> int:
    """Describe a bundle or a package, or verify it (`--check`). As JSON: the keys of bundle.json, its `code`, and this
    machine as `board`."""
    path = arguments.bundle
    if arguments.check or arguments.trust:
        return run_verify(arguments)
    if os.path.exists(path) and not os.path.isdir(path):  # a package; bundles are folders
        from merino_runtime.delivery import packed

        return packed.run_info(path, arguments.json)
    bundle = load_bundle(path, verify=False)
    here = board.this_board()
    if arguments.json:
        description = read_json(os.path.join(bundle.folder, "bundle.json"), "Copy or export the bundle again.")
        description.update(code=code_in(bundle), board=dict(here._asdict(), isa=sorted(here.isa)))
        write_out(json.dumps(description, indent=2) + "\n")
    else:
        write_lines("".join(f"{name:15} {value}\n" for name, value in _facts(bundle, here)))
    for note in check_bundle_fits(bundle, here):
        say_note(note)
    return 0


def _facts(bundle: Bundle, here: board.Board) -> List[Sequence]:
    return [
        ("name", bundle.name), ("family", bundle.family), ("precision", bundle.precision),
        ("dialect", bundle.dialect), ("weights", f"{bundle.weights}: {bundle.weights_source}"),
        ("context", bundle.context), ("vocab", bundle.vocab), ("params", f"{bundle.params:,}"),
        ("flops per token", f"{bundle.flops_per_token:,}"),
        ("weights read", f"{bundle.decode_weight_bytes / board.MB:.1f} MB per token"),
        ("KV cache", f"{bundle.kv_bytes / board.MB:.1f} MB, {cache_formats(bundle)}"),
        ("needs", needs_text(bundle)),
        ("fits boards", ", ".join(bundle.boards) or "none listed"),
        ("backend", backends_text(bundle)), ("kernels", _shown_kernels(bundle)),
        ("adapters", ", ".join(bundle.adapters) or "none"), ("code in it", _shown_code(code_in(bundle))),
        ("chat", "no" if bundle.chat is None else "yes" if bundle.chat.parts else "yes, with jinja2"),
        ("this machine", ", ".join([here.architecture, f"{here.physical_cores} cores", *sorted(here.isa)])),
    ]


def code_in(bundle: Bundle) -> List[str]:
    """Return the names of programs and native libraries among the bundle's files. No verb loads them."""
    names = []
    for path in filter(os.path.isfile, own_files(bundle)):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(4).startswith(PROGRAMS):
                names.append(os.path.relpath(path, bundle.folder))
    return names


def _shown_code(names: List[str]) -> str:
    return f"{', '.join(names)} (never loaded from a bundle; runs only if you start it)" if names else "none"


def _shown_kernels(bundle: Bundle) -> str:
    unknown = unknown_operators(bundle)
    known = f"this release lacks {', '.join(unknown)}" if unknown else "in the library of this release"
    return f"{', '.join(bundle.kernels)} ({known})" if bundle.kernels else "none"


def summary(done) -> str:
    """Summarize a generate.Done in one line."""
    decode = ("no decode step" if done.tok_s is None else
              f"decode {done.decode_ms_p50:.2f} ms (p50), {done.tok_s:.1f} tok/s")
    shifts = f", the older half of the context was dropped {done.shifts} times" if done.shifts else ""
    guessed = f", {done.guessed} of them guessed" if done.guessed else ""
    prefill = "unfinished" if done.prefill_ms is None else f"{done.prefill_ms:.1f} ms"
    return (f"{done.tokens} tokens{guessed}, prefill {prefill}, {decode}, peak RSS "
            f"{done.peak_rss_mb:.0f} MB, stopped by {done.stop_reason}{shifts}")


def stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def prompt_from_stdin() -> str:
    """Read stdin without its last line break, which ends a text file. Raise MerinoError if it is empty or not UTF-8."""
    if stdin_is_terminal():
        say_note("the prompt is read from the terminal; end it with ctrl-D on a line of its own")
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(LONGEST_TEXT_BYTES + 1)
    if len(data) > LONGEST_TEXT_BYTES:
        raise MerinoError(f"the prompt on stdin is longer than {LONGEST_TEXT_BYTES:,} bytes, the most that are "
                          "allowed. Shorten it.")
    try:
        text = re.sub(r"\r?\n\Z", "", data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MerinoError(f"the prompt on stdin is not UTF-8 text (byte {error.start}): convert it first.") from error
    if not text:
        raise MerinoError("the prompt on stdin is empty: give a PROMPT, or pipe text into this command.")
    return text
