"""The command `chat`: reads messages and commands line by line, and shows answers on a terminal, a pipe, or as JSON.

A talk has one interface wherever it runs: `merino_runtime.talk.Talk` here, or its twin on a board behind `--json`,
which the workstation's `chat --ssh` speaks to.
"""
from typing import Any, Dict, Optional

from merino_runtime.chat_commands import Line, Record, line_of, obeyed
from merino_runtime.chat_json import talk_in_json, write_json
from merino_runtime.chat_screens import Pipe, Terminal
from merino_runtime.commands import as_text
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling, check_new_tokens, check_sampling
from merino_runtime.screen import is_terminal
from merino_runtime.streams import say_note


def run_chat(bundle_path: str, as_json: bool = False, *, threads: Optional[int] = None,
             prefill_threads: Optional[int] = None, verify: bool = True, allow_slow: bool = False,
             huge_pages: bool = True, backend: Optional[str] = None, **options: Any) -> int:
    """options: of `api.LanguageModel.talk`. The exit code."""
    from merino_runtime.api import open_model

    if options.get("max_new_tokens") is not None:
        check_new_tokens(options["max_new_tokens"])
    check_sampling(options.get("sampling") or Sampling())
    if options.get("system") is not None:
        options["system"] = as_text(options["system"])
    with open_model(bundle_path, threads=threads, prefill_threads=prefill_threads, verify=verify,
                    allow_slow=allow_slow, huge_pages=huge_pages, backend=backend, say=say_note) as model:
        talk = model.talk(**options)
        if as_json:
            write_json({"chat": model.bundle.name, "context": model.backend.context, "system": talk.system})
            return talk_in_json(talk)
        return talk_with_people(talk, model.bundle.name)


def talk_with_people(talk: Any, name: str) -> int:
    """talk: as `talk.Talk`. On a terminal what cannot be done is said and the talk goes on; from a pipe it ends."""
    ways = Terminal() if is_terminal() else Pipe()
    record = Record(talk.system)
    ways.tell(f"{name}: /help lists commands, ctrl-C stops an answer, ctrl-D leaves", greeting=True)
    while True:
        typed = ways.read()
        if typed is None:
            return 0
        line = Line("", typed)
        try:
            line = line_of(typed)
            if line.command == "exit":
                return 0
            if line.command:
                ways.tell(obeyed(line, talk, record))
            elif line.text.strip():
                _answered(line.text, talk, record, ways)
        except MerinoError as error:
            ways.refuse(error)
        except KeyboardInterrupt:  # when an answer had just ended, or a second one while it was being stopped
            if not ways.goes_on:
                raise
            for event in talk.interrupted():
                if "done" in event:
                    record.add(line.text, event, 0)


def _answered(text: str, talk: Any, record: Record, ways: Any) -> None:
    """Shows an answer; ctrl-C stops it, and what there is of it stays in the talk."""
    begin: Dict[str, Any] = {}
    done: Dict[str, Any] = {}

    def take(event: Dict[str, Any]) -> None:
        if "begin" in event:
            begin.update(event)
            if event["dropped_turns"]:
                ways.tell(f"the context is full: the oldest {event['dropped_turns']} turns are left out from here on")
            ways.begin(event["thinks"])
        elif "done" in event:
            done.update(event)
            record.add(text, event, begin.get("dropped_turns", 0))
        else:
            ways.show(event["text"])

    try:
        for event in talk.answer(text):
            take(event)
    except KeyboardInterrupt:
        if not ways.goes_on:
            raise
        for event in talk.interrupted():
            take(event)
    finally:
        if begin:
            ways.end()
    if done.get("stop_reason") == "interrupt":
        ways.tell("stopped")
    elif done.get("stop_reason") == "context":
        ways.tell(f"the context of {done['context']} tokens is full, so the answer ends here: /reset begins anew")
    elif done.get("stop_reason") == "length":
        ways.tell(f"the answer ends after {done['tokens']} tokens, as -n asks for")
