"""Parses the lines of a chat into messages and commands, and runs the commands."""
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import check_output, write_output

COMMANDS = (
    ("/reset", "forget the turns"), ("/system TEXT", "the system message from now on; without TEXT: show it"),
    ("/save FILE", "write the conversation as JSON"), ("/stats", "what the last answer took"), ("/help", "this list"),
    ("/exit", "leave, as ctrl-D does"),
)


class Line(NamedTuple):
    """A typed line: a message, or a command with its argument."""
    command: str  # empty: a message
    text: str


def parse_line(text: str) -> Line:
    """Parse a typed line. A message that begins with `/` is typed with `//`. Raise MerinoError for an unknown
    command."""
    if not text.startswith("/"):
        return Line("", text)
    if text.startswith("//"):
        return Line("", text[1:])
    name, _, rest = text.partition(" ")
    known = [form.split()[0] for form, _ in COMMANDS]
    if name not in known:
        raise MerinoError(f"there is no command {name}: {', '.join(known)}. Write a message that begins with / "
                          "with //.")
    if rest.strip() and name not in ("/system", "/save"):
        raise MerinoError(f"{name} takes nothing after it: leave the rest out.")
    if name == "/save" and not rest.strip():
        raise MerinoError("/save needs a file: /save chat.json")
    return Line(name[1:], rest.strip())


class Record:
    """The messages, for /save, and the last measurements, for /stats. kept: files that /save may not replace."""

    def __init__(self, system: Optional[str], kept: Sequence[str] = ()) -> None:
        self.messages: List[Dict[str, str]] = []
        self.system, self._kept = system, kept
        self.done: Optional[Dict[str, Any]] = None

    def add(self, user: str, done: Dict[str, Any], dropped_turns: int) -> None:
        self.done = done
        del self.messages[:2 * dropped_turns]
        if done["tokens"]:
            self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": done["answer"]}]

    def save(self, path: str) -> str:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        if any(os.path.exists(path) and os.path.exists(own) and os.path.samefile(path, own) for own in self._kept):
            raise MerinoError(f"{path} is a file of the bundle that this chat runs on. Name another file: /save "
                              "chat.json")
        check_output(path)
        write_output(path, json.dumps({"messages": system + self.messages}, indent=1, ensure_ascii=False) + "\n")
        return f"wrote {path}: {len(system + self.messages)} messages"

    def stats(self) -> str:
        done = self.done
        if done is None:
            return "nothing was answered yet"
        cached = done["prompt_tokens"] - done["prefill_tokens"]
        lines = [f"prompt: {done['prompt_tokens']} tokens, {done['prefill_tokens']} computed, {cached} from the cache"]
        if done["prefill_ms"] is not None:
            lines.append(f"prefill: {done['prefill_ms']:.1f} ms")
        if done["tok_s"] is not None:
            lines.append(f"answer: {done['tokens']} tokens, {done['decode_ms_p50']:.2f} ms each (p50), "
                         f"{done['tok_s']:.1f} tok/s")
        lines.append(f"context: {done['context_used']} of {done['context']} tokens, turns: {done['turns']}")
        return "\n".join([*lines, f"peak RSS: {done['peak_rss_mb']:.0f} MB"])


def run_command(line: Line, conversation: Any, record: Record) -> str:
    """Run a command -> its output."""
    if line.command == "reset":
        conversation.reset()
        record.messages, record.done = [], None
        return "the turns are forgotten"
    if line.command == "system":
        if line.text:
            conversation.set_system(line.text)
            record.system = line.text
        return f"system: {record.system}" if record.system is not None else "system: the template's own, if it has one"
    if line.command == "save":
        return record.save(line.text)
    if line.command == "stats":
        return record.stats()
    return "\n".join(f"{form}: {what}" for form, what in COMMANDS)
