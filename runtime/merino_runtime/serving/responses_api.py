"""OpenAI's Responses API: a body -> that of a chat completion; its answer as items, whole or as typed events.

Nothing is stored: each request has the whole conversation in `input`.
"""
import uuid
from typing import Any, Dict, List, Tuple

from merino_runtime.generation.text import Tokenizer
from merino_runtime.serving import fields, openai_requests
from merino_runtime.serving.choice import Call, Delta, ResponseOptions, Writer, comment_of, one_line
from merino_runtime.serving.fields import Body
from merino_runtime.serving.openai_requests import Target
from merino_runtime.serving.openai_responses import error_of, extras
from merino_runtime.serving.requests import Event, Finished, GenerationRequest, Progress, RefusedError

Json = Dict[str, Any]
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}  # item -> the type of its part, and of its events
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def response_of(body: Body, target: Target) -> Tuple[List[GenerationRequest], ResponseOptions]:
    if body.get("top_logprobs") or "message.output_text.logprobs" in fields.a_list(body, "include"):
        raise RefusedError("this route has no log-probabilities: ask /v1/chat/completions for them, with logprobs.",
                           param="top_logprobs" if body.get("top_logprobs") else "include")
    tools = [_tool(tool, index) for index, tool in enumerate(fields.a_list(body, "tools"))]
    form = fields.an_object(fields.an_object(body, "text"), "format")
    schema = {"type": "json_schema", "json_schema": form} if form.get("type") == "json_schema" else form
    chat = dict(body, messages=_messages(body), tools=tools, response_format=schema, n=1, logprobs=False,
                reasoning_effort=fields.an_object(body, "reasoning").get("effort"))
    chat["max_completion_tokens"] = chat.pop("max_output_tokens", None)
    requests, options = openai_requests.chat_of(chat, target)
    sampling = requests[0].sampling
    repeated = {name: body.get(name) for name in ("instructions", "max_output_tokens", "metadata", "user")}
    head = dict(repeated, temperature=sampling.temperature, top_p=sampling.top_p, tools=body.get("tools") or [],
                tool_choice=body.get("tool_choice") or "auto", text={"format": form or {"type": "text"}},
                reasoning=dict({"effort": None, "summary": None}, **fields.an_object(body, "reasoning")), store=False,
                parallel_tool_calls=fields.flag(body, "parallel_tool_calls", True), previous_response_id=None,
                truncation="disabled", background=False)
    return requests, options._replace(head=head)


def _tool(tool: Any, index: int) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else tool
        raise RefusedError(f"tools[{index}].type is {str(kind)[:40]!r}, allowed: function. This server has no tools of "
                           "its own.", param="tools")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _messages(body: Body) -> List[Json]:
    """Convert the items of `input`. Calls that follow each other, or a text of the assistant, become one message."""
    items = body.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else fields.a_list(body, "input")
    messages: List[Json] = []
    for index, item in enumerate(items):
        name, kind = f"input[{index}]", item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append({"role": item.get("role"),
                             "content": fields.texts_of(item.get("content"), f"{name}.content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"),
                             "content": fields.texts_of(item.get("output"), f"{name}.output")})
        elif kind != "reasoning":  # of an earlier answer, which templates leave out
            raise RefusedError(f"{name}.type is {str(kind)[:40]!r}, allowed: message, function_call, "
                               "function_call_output, reasoning.", param="input")
    instructions = fields.text(body, "instructions", "")
    if instructions:
        system = messages.pop(0)["content"] if messages and messages[0]["role"] in ("system", "developer") else ""
        messages.insert(0, {"role": "system", "content": "\n\n".join(filter(None, (instructions, system)))})
    return messages


class ResponseWriter(Writer):
    gathers = True
    error_of = staticmethod(error_of)

    def __init__(self, options: ResponseOptions, count: int, tokenizer: Tokenizer) -> None:
        super().__init__(options, count, tokenizer)
        self._items: List[Json] = []
        self._open = False  # whether the last item may grow
        self._events = 0

    def written(self, _: int, event: Event, deltas: List[Delta]) -> bytes:
        choice = self.choices[0]
        events: List[Json] = []
        if not self._events:
            events += [{"type": "response." + name, "response": self._response("in_progress")}
                       for name in ("created", "in_progress")]
        for delta in deltas:
            events += self._add(delta)
        if choice.refusal:
            events.append(dict(error_of(choice.refusal)["error"], type="error"))
        elif isinstance(event, Finished):
            if not self._items:
                events += self._begin("message")
            events += self._end()
            whole = self.whole()
            events.append(dict(extras(choice), type="response." + whole["status"], response=whole))
        for written in events:
            written["sequence_number"] = self._events
            self._events += 1
        if not self.stream:
            return b""
        return b"".join([b"event: %s\ndata: %s\n\n" % (written["type"].encode("ascii"), one_line(written))
                         for written in events]) + (comment_of(event) if isinstance(event, Progress) else b"")

    def whole(self) -> Json:
        choice = self.choices[0]
        response = self._response("completed" if choice.reason == "stop" else "incomplete")
        if choice.reason != "stop":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if choice.usage:
            usage = choice.usage
            response["usage"] = {
                "input_tokens": usage.prompt_tokens, "output_tokens": usage.tokens,
                "total_tokens": usage.prompt_tokens + usage.tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens_details": {"reasoning_tokens": 0}}
        return dict(response, **extras(choice))

    def _response(self, status: str) -> Json:
        return dict(self.options.head or {}, id="resp_" + self.id, object="response", created_at=self.created_s,
                    status=status, model=self.options.model, output=list(self._items), error=None,
                    incomplete_details=None, usage=None)

    def _add(self, delta: Delta) -> List[Json]:
        """Add a piece of the answer to the last item, or to a new one -> events."""
        if isinstance(delta, Call):
            text = delta.arguments_text
            events = self._begin("function_call", call_id=delta.id, name=delta.name, arguments="")
            self._items[-1]["arguments"] = text
            events += [self._of_item("response.function_call_arguments.delta", delta=text),
                       self._of_item("response.function_call_arguments.done", arguments=text, name=delta.name)]
            return events + self._end()
        kind = "reasoning" if delta.thinking else "message"
        events = [] if self._open and self._items[-1]["type"] == kind else self._begin(kind)
        self._items[-1]["content"][0]["text"] += delta.text
        more = {"logprobs": []} if kind == "message" else {}  # type: Json
        return [*events, self._of_item(f"response.{PARTS[kind]}.delta", content_index=0, delta=delta.text, **more)]

    def _begin(self, kind: str, **more: Any) -> List[Json]:
        events = self._end()
        item = dict(more, type=kind, id=f"{PREFIXES[kind]}_{uuid.uuid4().hex[:24]}", status="in_progress")
        if kind in PARTS:
            item["content"] = []
            item[{"message": "role", "reasoning": "summary"}[kind]] = "assistant" if kind == "message" else []
        self._items.append(item)
        self._open = True
        events.append({"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": dict(item)})
        if kind in PARTS:
            part: Json = {"type": PARTS[kind], "text": "", "annotations": [], "logprobs": []}
            part = part if kind == "message" else {"type": PARTS[kind], "text": ""}
            item["content"] = [part]
            events.append(self._of_item("response.content_part.added", content_index=0, part=dict(part)))
        return events

    def _end(self) -> List[Json]:
        """End the last item -> events."""
        if not self._open:
            return []
        self._open = False
        item, events = self._items[-1], []  # type: Json, List[Json]
        item["status"] = "incomplete" if self.choices[0].reason not in (None, "stop") else "completed"
        if item["type"] in PARTS:
            (part,) = item["content"]
            more = {"logprobs": []} if item["type"] == "message" else {}  # type: Json
            events = [self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **more),
                      self._of_item("response.content_part.done", content_index=0, part=part)]
        return [*events, {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item}]

    def _of_item(self, kind: str, **more: Any) -> Json:
        return dict(more, type=kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1)
