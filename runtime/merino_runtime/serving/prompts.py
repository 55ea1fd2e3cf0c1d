"""Converts messages to the ids that a model reads, by its chat template.

A request may have messages of any roles in any order, tool calls and their results. If the template has parts and the
messages alternate, no Jinja is needed. A template with a variable for tools gets them; otherwise the system message
describes them, and calls and results become texts with the same marks.
"""
import collections
import json
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from merino_runtime.bundle import Bundle
from merino_runtime.chat.template import THINK, THINK_END, ChatTemplate, Message, Segment, encode_segments
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import Tokenizer
from merino_runtime.serving.requests import RefusedError

CALL, CALL_END = "<tool_call>", "</tool_call>"
MOST_ANSWERS = 256  # answers whose ids are remembered
DESCRIBED = """# Tools

You may call one or more functions to help the user. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>"""


class Prompt(NamedTuple):
    ids: Tuple[int, ...]
    thinks: bool  # the answer begins inside its thinking


class Prompts:
    """Renders prompts for one model. If a later request repeats an answer, its generated ids are used, because the slot
    holds them and the tokenizer may split the text differently."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer) -> None:
        self.bundle, self.tokenizer = bundle, tokenizer
        self.template = None if bundle.chat is None else ChatTemplate(bundle, bundle.chat)
        self._answers: Dict[Tuple[str, str], Tuple[int, ...]] = collections.OrderedDict()  # by owner and text

    @property
    def thinking(self) -> bool:
        """Return whether the template supports thinking, so that an answer may begin with it."""
        return self.template is not None and THINK in self.template.source()

    def of_text(self, text: str) -> Tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    def of_messages(self, messages: Sequence[Message], tools: Sequence[Dict[str, Any]] = (), no_think: bool = False,
                    owner: str = "", continued: str = "") -> Prompt:
        """Render messages. owner: whose remembered answers are used. continued: the answer's beginning. Raise
        RefusedError if the template does not support them."""
        if self.template is None:
            raise RefusedError(f"the model {self.bundle.name!r} has no chat template: it continues texts. Use "
                          "/v1/completions or /api/generate with raw, or serve a model that was trained to chat.")
        try:
            segments = _segments(self.template, messages, tools, no_think)
        except RefusedError:
            raise
        except MerinoError as error:
            raise RefusedError(str(error), param="messages") from error
        opening, answers = segments[-1].text + continued, self._answers
        segments += [Segment(continued)] if continued else []
        ids = encode_segments(self.tokenizer, segments, lambda index: (
            () if segments[index].turn is None else answers.get((owner, segments[index].text), ())))
        return Prompt(tuple(ids), opening.rfind(THINK) > opening.rfind(THINK_END))

    def remember(self, text: str, ids: Sequence[int], owner: str) -> None:
        """Remember the ids of a complete answer."""
        stops = self.bundle.stop_ids
        self._answers.pop((owner, text), None)
        self._answers[owner, text] = tuple(ids[:-1] if ids and ids[-1] in stops else ids)
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]


def _segments(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Dict[str, Any]], no_think: bool
              ) -> List[Segment]:
    if not tools and not any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        return template.segments(messages, no_think)
    if not _takes_tools(template):
        return template.segments(without_tools(messages, tools), no_think)
    return template.segments(messages, no_think, {"tools": list(tools)} if tools else {})


def _takes_tools(template: ChatTemplate) -> bool:
    """Return whether the template has a variable for tools, and marks calls as DESCRIBED does."""
    text = template.source()
    if "tools" not in text or CALL not in text:
        return False
    try:
        template.render()
    except MerinoError:  # no jinja2 here
        return False
    return True


def without_tools(messages: Sequence[Message], tools: Sequence[Dict[str, Any]]) -> List[Message]:
    """Rewrite a conversation for a template without tools: the system message describes them."""
    rewritten: List[Message] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if rewritten and rewritten[-1]["role"] == "user" and rewritten[-1].get("answers_tools"):
                rewritten[-1]["content"] += "\n" + text
            else:
                rewritten.append({"role": "user", "content": text, "answers_tools": True})
        elif message.get("tool_calls"):
            texts = [message["content"]] if message.get("content") else []
            for function in [call["function"] for call in message["tool_calls"]]:
                call = {"name": function["name"], "arguments": function["arguments"]}
                texts.append(f"{CALL}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_END}")
            rewritten.append({"role": "assistant", "content": "\n".join(texts)})
        else:
            rewritten.append(dict(message))
    if tools:
        text = DESCRIBED.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if rewritten and rewritten[0]["role"] == "system":
            rewritten[0]["content"] += "\n\n" + text
        else:
            rewritten.insert(0, {"role": "system", "content": text})
    return [{"role": message["role"], "content": message["content"]} for message in rewritten]
