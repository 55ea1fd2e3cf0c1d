"""Ollama's interface: bodies -> requests, responses -> lines of JSON. Its options have other names, arguments of tool
calls are objects, and times are nanoseconds."""
import datetime
import hashlib
from typing import Any, Dict, List, Optional, Tuple

from merino_runtime.sampling import Form
from merino_runtime.serving import fields, openai_requests, openai_responses
from merino_runtime.serving.choice import Call, Delta, ResponseOptions, Writer, one_line
from merino_runtime.serving.fields import Body
from merino_runtime.serving.models import Model
from merino_runtime.serving.openai_requests import Target
from merino_runtime.serving.requests import Event, GenerationRequest, RefusedError

Json = Dict[str, Any]
RENAMED = {"repeat_penalty": "repetition_penalty"}


def error_of(refusal: RefusedError) -> Json:
    return {"error": str(refusal)}


def options_of(body: Body) -> Body:
    """Return Ollama's `options` under the names of OpenAI's fields. num_predict -1 and -2: as many as fit."""
    options = {RENAMED.get(name, name): value for name, value in fields.an_object(body, "options").items()}
    if isinstance(options.get("num_predict"), (int, float)) and options["num_predict"] < 0:
        del options["num_predict"]
    if options.get("seed") == 0:  # Ollama's default: no seed
        del options["seed"]
    for name in ("priority", "max_seconds", "tools", "messages"):
        if name in body:
            options[name] = body[name]
    return options


def form_of(body: Body) -> Optional[Form]:
    """Read `format`, or a field of `openai_requests` -> the form of the text; None for any text."""
    schema = body.get("format")
    if schema in (None, ""):
        return openai_requests.form_of({**body, **options_of(body)})
    if schema != "json" and not isinstance(schema, dict):
        raise fields.wrong("format", schema, '"json", or a JSON schema')
    return Form("json", openai_requests.ANY_OBJECT if schema == "json" else schema)


def chat_of(body: Body, target: Target, chat: bool = True) -> Tuple[List[GenerationRequest], ResponseOptions]:
    prompts = target.prompts
    if any(isinstance(message, dict) and message.get("images") for message in fields.a_list(body, "messages")):
        raise RefusedError("messages have images: leave them out, this model reads text alone.", param="messages")
    tools, think = openai_requests.tools_of(body), body.get("think") is not False
    grammar = openai_requests.grammar_of(prompts, form_of(body), tools, thinks=prompts.thinking and think)
    prompt = prompts.of_messages(openai_requests.messages_of(body), tools, no_think=grammar is not None or not think,
                                 owner=target.client.owner)
    options = ResponseOptions("", fields.flag(body, "stream", True), chat, tools=bool(tools),
                              thinks=prompt.thinks and grammar is None, shows_thinking=think)
    return [_request_of(body, prompt.ids, target, begins=True, grammar=grammar)], options


def generate_of(body: Body, target: Target) -> Tuple[List[GenerationRequest], ResponseOptions]:
    """Apply the chat template, as Ollama does, unless `raw` is set or the model has none."""
    prompts = target.prompts
    text, system = fields.text(body, "prompt", ""), fields.text(body, "system", "")
    if not fields.flag(body, "raw") and prompts.template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        return chat_of(dict(body, messages=messages, tools=[]), target, chat=False)
    if not text:
        raise RefusedError("the prompt is empty. Give at least one character.", param="prompt")
    grammar = openai_requests.grammar_of(prompts, form_of(body))
    return [_request_of(body, prompts.of_text(text), target, grammar=grammar)], ResponseOptions(
        "", fields.flag(body, "stream", True), False)


def _request_of(body: Body, ids: Tuple[int, ...], target: Target, **more: Any) -> GenerationRequest:
    options = options_of(body)
    most = fields.integer(options, "num_predict", None, 1, openai_requests.LARGEST)
    fields.check_fields(options)
    return openai_requests.request_of(options, ids, target, most, watched=fields.flag(body, "stream", True), **more)


class ResponseWriter(Writer):
    content_type = "application/x-ndjson"
    error_of = staticmethod(error_of)

    def written(self, _: int, __: Event, deltas: List[Delta]) -> bytes:
        choice = self.choices[0]
        if choice.refusal:
            return _line(error_of(choice.refusal))
        lines = []
        for delta in deltas:
            if isinstance(delta, Call):
                lines.append(self._part("", "", [delta]))
            else:
                lines.append(self._part("", delta.text, []) if delta.thinking else self._part(delta.text, "", []))
        if choice.reason:
            lines.append(self._last("", "", []))
        return b"".join(map(_line, lines))

    def whole(self) -> Json:
        choice = self.choices[0]
        return self._last(choice.content, choice.thinking, choice.calls)

    def _part(self, content: str, thinking: str, calls: List[Call], done: bool = False) -> Json:
        head: Json = {"model": self.options.model, "created_at": _now()}
        if not self.options.chat:
            part = dict(head, response=content, done=done)
            return dict(part, thinking=thinking) if thinking else part
        message: Json = {"role": "assistant", "content": content}
        if thinking and self.options.shows_thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = [{"function": {"index": index, "name": call.name, "arguments": call.arguments}}
                                     for index, call in enumerate(calls)]
        return dict(head, message=message, done=done)

    def _last(self, content: str, thinking: str, calls: List[Call]) -> Json:
        reason, usage = self.choices[0].reason, self.choices[0].usage
        part = dict(self._part(content, thinking, calls, done=True),
                    done_reason="stop" if reason in ("stop", "cancelled") else "length")
        if usage is not None:
            part.update(total_duration=_ns(usage.total_ms), load_duration=0, prompt_eval_count=usage.prompt_tokens,
                        prompt_eval_duration=_ns(usage.prefill_ms), eval_count=usage.tokens,
                        eval_duration=_ns(usage.decode_ms))
            part.update({name: value for name, value in (("energy", usage.energy), ("thermal", usage.thermal))
                         if value})
        return part


class EmbeddingWriter(openai_responses.EmbeddingWriter):
    error_of = staticmethod(error_of)

    def whole(self) -> Json:
        return {"model": self.options.model, "embeddings": [choice.embedding for choice in self.choices],
                "prompt_eval_count": self.prompt_tokens}


def loaded(model: str, chat: bool) -> Json:
    """Return the response to a request without a prompt, which in Ollama loads the model."""
    head: Json = {"model": model, "created_at": _now(), "done": True, "done_reason": "load"}
    return dict(head, message={"role": "assistant", "content": ""}) if chat else dict(head, response="")


def tag_of(model: Model) -> Json:
    """Describe a model for /api/tags."""
    bundle = model.bundle
    digest = hashlib.sha256("".join(file.sha256 for file in bundle.files).encode("ascii")).hexdigest()
    modified = _time(datetime.datetime.fromtimestamp(model.modified_s, datetime.timezone.utc))
    return {"name": model.name, "model": model.name, "modified_at": modified, "digest": digest,
            "size": sum(file.bytes for file in bundle.files), "details": details_of(model)}


def details_of(model: Model) -> Json:
    bundle = model.bundle
    return {"parent_model": "", "format": "onnx", "family": bundle.family, "families": [bundle.family],
            "parameter_size": f"{bundle.params / 1e6:.1f}M", "quantization_level": bundle.precision}


def shown(model: Model) -> Json:
    """Describe a model for /api/show."""
    bundle = model.bundle
    capabilities = ["completion", *["tools"] * bool(bundle.chat), *["thinking"] * model.prompts.thinking]
    return {"details": details_of(model), "capabilities": capabilities, "template": "", "parameters": "", "license": "",
            "modelfile": "", "modified_at": tag_of(model)["modified_at"],
            "model_info": {"general.architecture": bundle.family, "general.parameter_count": bundle.params,
                           f"{bundle.family}.context_length": bundle.context}}


def running(model: Model) -> Json:
    """Describe a loaded model for /api/ps."""
    tag = tag_of(model)
    return dict({name: tag[name] for name in ("name", "model", "size", "digest", "details")},
                expires_at="9999-12-31T23:59:59Z", size_vram=0, context_length=model.bundle.context)


def _now() -> str:
    return _time(datetime.datetime.now(datetime.timezone.utc))


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _ns(milliseconds: float) -> int:
    return int(milliseconds * 1e6)


def _line(value: Json) -> bytes:
    return one_line(value) + b"\n"
