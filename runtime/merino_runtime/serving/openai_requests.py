"""Parses the bodies of OpenAI's chat completions and completions into requests."""
import json
import threading
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.bundle import embedding_size
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import RANGES, Form, Sampling
from merino_runtime.serving import fields
from merino_runtime.serving.choice import ResponseOptions
from merino_runtime.serving.fields import Body
from merino_runtime.serving.prompts import Message, Prompts
from merino_runtime.serving.requests import Client, GenerationRequest, RefusedError

ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
         "function": "tool"}
MOST_MESSAGES = 4096
MOST_TOOLS = 128
MOST_EMBEDDED = 2048  # texts of one request for embeddings
MOST_PROMPTS = 64  # of one request, each counted once per answer
MOST_TOP = 20
LARGEST = 2 ** 31
LONGEST_S = 86400
SAME_SEED = 2 ** 32
# Fields of llama.cpp's and vLLM's, and the form of the text that each describes; what a form is.
GUIDES = {"json_schema": "json", "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
          "guided_grammar": "grammar", "grammar": "grammar"}
KINDS: Dict[str, Tuple[Any, str]] = {
    "json": ((dict, bool), "a JSON schema"), "regex": (str, "a regular expression"), "grammar": (str, "a grammar"),
    "choice": (list, "a list of at least one text")}
STYLE = "hermes"  # of tool calls, as `prompts` describes them to the model
FORMATS = ("text", "json_object", "json_schema")
ANY_OBJECT = {"type": "object"}
_compiling = threading.Lock()  # requests share the tokenizer, which keeps grammars for later requests


class Target(NamedTuple):
    """What a body is read for."""
    prompts: Prompts  # of the model
    client: Client
    limit_s: Optional[float]  # of every request


def sampling_of(body: Body) -> Sampling:
    default = Sampling()
    seed = fields.integer(body, "seed", None, -(2 ** 63), 2 ** 63 - 1)
    numbers = {name: fields.number(body, name, getattr(default, name), low, high)
               for name, (low, high) in RANGES.items() if name != "logit_bias"}
    return default._replace(**dict(
        numbers, top_k=max(0, fields.integer(body, "top_k", default.top_k, -1, LARGEST)),
        dry_allowed_length=fields.integer(body, "dry_allowed_length", default.dry_allowed_length,
                                          *RANGES["dry_allowed_length"]),
        top_p=max(1e-6, numbers["top_p"]), seed=None if seed is None else seed % SAME_SEED,
        logit_bias=fields.logit_bias(body)))


def several(requests: Sequence[GenerationRequest], body: Body) -> List[GenerationRequest]:
    """Return `n` requests for each; the answers to one prompt have different seeds. They compute the prompt once."""
    n = fields.integer(body, "n", 1, 1, MOST_PROMPTS)
    best_of = fields.integer(body, "best_of", n, 1, MOST_PROMPTS)
    if best_of != n:
        raise RefusedError(f"best_of is {best_of}, allowed: {n}, the value of n. Choose the best answer yourself.",
                           param="best_of")
    if n * len(requests) > MOST_PROMPTS:
        raise RefusedError(f"n is {n} for {len(requests)} prompts, allowed are {MOST_PROMPTS} answers.", param="n")
    seeds = [(request, request.sampling.seed, index) for request in requests for index in range(n)]
    return [request._replace(sampling=request.sampling._replace(seed=None if seed is None else seed + index))
            for request, seed, index in seeds]


def most_of(body: Body, *names: str, default: Optional[int] = None, least: int = 1) -> Optional[int]:
    """Return the most tokens of an answer, from the first of the fields that is given; None, or -1: as many as fit."""
    for name in names:
        most = fields.integer(body, name, None, -1, LARGEST)
        if most is not None and -1 < most < least:
            raise fields.wrong(name, most, f"{least} or more, or -1 for as many as fit")
        if most is not None:
            return None if most == -1 else int(most)
    return default


def request_of(body: Body, ids: Sequence[int], target: Target, most: Any, **more: Any) -> GenerationRequest:
    """Build a request. most: `max_tokens`, clamped to the room in the context; None: as many as fit."""
    bundle = target.prompts.bundle
    room = bundle.context - len(ids)
    if room < 1:
        raise RefusedError(f"the prompt has {len(ids)} tokens and the context of this model is {bundle.context}: at "
                           f"most {bundle.context - 1}. Shorten the messages, or leave out the oldest.",
                           param="messages", code="context_length_exceeded")
    if ids and max(ids) >= bundle.vocab:
        raise RefusedError(f"the prompt has the token id {max(ids)}, allowed are 0 to {bundle.vocab - 1}.",
                           param="prompt")
    sampling = sampling_of(body)
    unknown = [token_id for token_id, _ in sampling.logit_bias if token_id >= bundle.vocab]
    if unknown:
        raise RefusedError(f"logit_bias has the token id {unknown[0]}, allowed are 0 to {bundle.vocab - 1}.",
                           param="logit_bias")
    if more.get("grammar") is not None and fields.flag(body, "ignore_eos"):
        raise RefusedError("ignore_eos is set, and the answer ends where its JSON does. Leave one out.",
                           param="ignore_eos")
    limit_s = fields.number(body, "max_seconds", None, 0, LONGEST_S)
    limits_s = [limit for limit in (limit_s, target.limit_s) if limit is not None]
    priority = fields.text(body, "priority", "normal")
    if priority not in ("normal", "background"):
        raise fields.wrong("priority", priority, "normal, background")
    return GenerationRequest(
        ids=tuple(ids), max_new_tokens=room if most is None else min(most, room), sampling=sampling,
        stops=fields.stops(body), ignore_eos=fields.flag(body, "ignore_eos"), background=priority == "background",
        client=target.client, limit_s=min(limits_s) if limits_s else None, **more)


def chat_of(body: Body, target: Target) -> Tuple[List[GenerationRequest], ResponseOptions]:
    prompts = target.prompts
    tools, choice = tool_choice_of(body)
    grammar = grammar_of(prompts, form_of(body), tools, choice, prompts.thinking and _thinks(body))
    messages, continued = continued_of(body, messages_of(body))
    prompt = prompts.of_messages(messages, tools, no_think=grammar is not None or not _thinks(body),
                                 owner=target.client.owner, continued=continued)
    logprobs = fields.flag(body, "logprobs")
    top = fields.integer(body, "top_logprobs", 0, 0, MOST_TOP)
    most = most_of(body, "max_completion_tokens", "max_tokens")
    request = request_of(body, prompt.ids, target, most, begins=not continued, top=top if logprobs else None,
                         grammar=grammar, watched=fields.flag(body, "stream"))
    return several([request], body), _response_options(
        body, chat=True, tools=bool(tools), required=bool(tools) and choice != "auto",
        thinks=prompt.thinks and grammar is None, logprobs=logprobs)


def completions_of(body: Body, target: Target) -> Tuple[List[GenerationRequest], ResponseOptions]:
    prompts = target.prompts
    echo = fields.flag(body, "echo")
    top = fields.integer(body, "logprobs", None, 0, MOST_TOP)
    most = most_of(body, "max_tokens", default=16, least=0 if echo else 1)
    listed = prompts_of(body)
    grammar = grammar_of(prompts, form_of(body))
    requests = [request_of(body, prompt if isinstance(prompt, tuple) else prompts.of_text(prompt), target, most,
                           top=top, echo=echo and top is not None, watched=fields.flag(body, "stream"), grammar=grammar)
                for prompt in listed]
    texts = tuple(prompt if isinstance(prompt, str) else "" for prompt in listed) if echo and top is None else ()
    return several(requests, body), _response_options(body, chat=False, logprobs=top is not None, echo=texts)


def embeddings_of(body: Body, target: Target, truncates: bool = False
                  ) -> Tuple[List[GenerationRequest], ResponseOptions]:
    """truncates: the default of Ollama's `truncate`, which cuts what does not fit the context."""
    prompts, size = target.prompts, embedding_size(target.prompts.bundle)
    base64 = fields.text(body, "encoding_format") == "base64"
    fields.integer(body, "dimensions", size, size, size)
    most = prompts.bundle.context - 1 if fields.flag(body, "truncate", truncates) else None
    listed = [text if isinstance(text, tuple) else prompts.of_text(text)
              for text in prompts_of(body, "input", MOST_EMBEDDED)]
    requests = [request_of(body, ids[:most], target, 1, embeds=True) for ids in listed]
    return requests, ResponseOptions("", stream=False, chat=False, base64=base64)


def _response_options(body: Body, chat: bool, **more: Any) -> ResponseOptions:
    return ResponseOptions(fields.text(body, "model", ""), fields.flag(body, "stream"), chat,
                           usage=fields.flag(fields.an_object(body, "stream_options"), "include_usage"),
                           counts=fields.flag(body, "timings_per_token"),
                           n=fields.integer(body, "n", 1, 1, MOST_PROMPTS), **more)


def prompts_of(body: Body, name: str = "prompt", most: int = MOST_PROMPTS) -> List[Any]:
    """Return the prompts, each a string or a tuple of ids."""
    value = body.get(name)
    several = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    listed: Any = value if several else [value]
    if len(listed) > most:
        raise RefusedError(f"{name} has {len(listed)} texts, allowed are {most}.", param=name)
    prompts: List[Any] = []
    for prompt in listed:
        ids = isinstance(prompt, list) and all(type(token_id) is int and token_id >= 0 for token_id in prompt)
        if not prompt or not (ids or isinstance(prompt, str)):
            raise fields.wrong(name, prompt,
                               "a text of at least one character, a list of token ids, or a list of such")
        prompts.append(tuple(prompt) if ids else prompt)
    return prompts


def _thinks(body: Body) -> bool:
    """Return whether thinking is enabled: by chat_template_kwargs, as in llama.cpp and vLLM, or reasoning_effort."""
    enabled = fields.flag(fields.an_object(body, "chat_template_kwargs"), "enable_thinking", True)
    return enabled and fields.text(body, "reasoning_effort") != "none"


def messages_of(body: Body) -> List[Message]:
    """Return the messages. Contents are joined to one text each; arguments of calls are objects."""
    messages = fields.a_list(body, "messages")
    if not messages or len(messages) > MOST_MESSAGES:
        raise RefusedError(f"messages has {len(messages)} messages, allowed are 1 to {MOST_MESSAGES}.",
                           param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, name: str) -> Message:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role:
        raise RefusedError(f"{name}.role must be a string, such as {', '.join(ROLES)}.", param=f"{name}.role")
    content = fields.texts_of(message.get("content"), f"{name}.content")
    parsed: Dict[str, Any] = {"role": ROLES.get(role, role), "content": content}  # templates may have more roles
    calls = [_call(call, f"{name}.tool_calls") for call in fields.a_list(message, "tool_calls")]
    if calls:
        parsed["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if isinstance(message.get(key), str):
            parsed[key] = message[key]
    return parsed


def continued_of(body: Body, messages: List[Message]) -> Tuple[List[Message], str]:
    """Return the messages, and the beginning of the answer: with continue_final_message the last message's text."""
    if not fields.flag(body, "continue_final_message"):
        return messages, ""
    if fields.flag(body, "add_generation_prompt"):
        raise RefusedError("continue_final_message and add_generation_prompt exclude each other. Set one of them.",
                           param="continue_final_message")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"] or len(messages) < 2:
        raise RefusedError("continue_final_message needs a last message of the assistant with a text, and a message "
                           "before it.", param="continue_final_message")
    return messages[:-1], str(messages[-1]["content"])


def _call(call: Any, name: str) -> Dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusedError(f"{name} must have a function with a name.", param=name)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = fields.body_of(arguments.encode("utf-8"))
        except RefusedError as error:
            raise RefusedError(f"{name}: the arguments of {function['name']} must be a JSON object.",
                               param=name) from error
    if not isinstance(arguments, dict):
        raise RefusedError(f"{name}: the arguments of {function['name']} must be an object.", param=name)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(body: Body) -> List[Dict[str, Any]]:
    tools = fields.a_list(body, "tools")
    if len(tools) > MOST_TOOLS:
        raise RefusedError(f"tools has {len(tools)} tools, allowed are {MOST_TOOLS}.", param="tools")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RefusedError(f"tools[{index}] must be of type function, with a name.", param="tools")
    return tools


def tool_choice_of(body: Body) -> Tuple[List[Dict[str, Any]], Any]:
    """Return the tools that may be called, and the choice among them: auto, required or a tool."""
    tools, choice = tools_of(body), body.get("tool_choice") or "auto"
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # OpenAI's Responses API has its fields without a level between
        listed = fields.a_list(allowed, "tools") if isinstance(allowed, dict) else []
        names = {(tool.get("function") or tool).get("name") for tool in listed if isinstance(tool, dict)}
        unknown = names - {tool["function"]["name"] for tool in tools}
        if not names or unknown:
            raise RefusedError(f"tool_choice.allowed_tools has {sorted(map(str, unknown)) or 'no tools'}. Name tools "
                               "of the request.", param="tool_choice")
        tools, choice = [tool for tool in tools if tool["function"]["name"] in names], allowed.get("mode", "auto")
    if choice == "none":
        return [], "auto"
    if choice != "auto" and not tools:
        raise RefusedError(f"tool_choice is {json.dumps(choice)[:80]}, and the request has no tools. Send tools, or "
                           "leave tool_choice out.", param="tool_choice")
    return tools, choice


def form_of(body: Body) -> Optional[Form]:
    """Return the form of the answer's text; None for any text."""
    given = list(_forms_of(body))
    for name, kind, value in given:
        types, allowed = KINDS.get(kind, ((), "none, but " + ", ".join(KINDS)))
        texts = value if kind == "choice" and isinstance(value, list) else [""]
        if not isinstance(value, types) or not texts or not all(isinstance(text, str) for text in texts):
            raise fields.wrong(name, value, allowed)
    if len(given) > 1:
        raise RefusedError(f"{' and '.join(name for name, _, _ in given)} were given: an answer has one form. Leave "
                           "out all but one.", param=given[1][0])
    return Form(*given[0][1:]) if given else None


def _forms_of(body: Body) -> Iterator[Tuple[str, str, Any]]:
    """Yield the forms in llama.cpp's and vLLM's fields and in OpenAI's response_format: its name, kind and value."""
    fields_of = dict({f"structured_outputs.{name}": name for name in fields.an_object(body, "structured_outputs")
                      if not name.startswith("disable_")}, **GUIDES)
    given = False
    for name, kind in fields_of.items():
        value = body.get(name) if name in GUIDES else body["structured_outputs"][kind]
        if value not in (None, ""):
            given = True
            yield name, kind, value
    form = fields.an_object(body, "response_format")
    kind = form.get("type", "text")
    if kind not in FORMATS:
        raise fields.wrong("response_format.type", kind, ", ".join(FORMATS))
    if kind == "json_schema":
        schema = fields.an_object(form, "json_schema").get("schema")
        yield "response_format.json_schema.schema", "json", schema
    elif kind == "json_object" and form.get("schema") is not None:  # as in llama.cpp
        yield "response_format.schema", "json", form["schema"]
    elif kind == "json_object" and not given:
        yield "response_format", "json", ANY_OBJECT


def grammar_of(prompts: Prompts, form: Optional[Form], tools: Sequence[Dict[str, Any]] = (), choice: Any = "auto",
               thinks: bool = False) -> Optional[Any]:
    """Return the grammar of a completion; None if it is unconstrained. With both a form and tools it is a call or of
    that form. thinks: whether it may begin with thinking, so that only a required call is constrained. Raise
    RefusedError for a form that cannot be expressed."""
    if form is None and (not tools or (choice == "auto" and thinks)):
        return None
    from merino_runtime.generation import constraints

    tokenizer, stop_ids = prompts.tokenizer, prompts.bundle.stop_ids
    try:
        with _compiling:
            if tools:
                described = [{"type": "function", "function": tool["function"]} for tool in tools]
                return constraints.compile_tools(described, choice, tokenizer, stop_ids, STYLE, form)
            assert form is not None
            return constraints.compile_form(form, tokenizer, stop_ids)
    except MerinoError as error:
        raise RefusedError(str(error), param="tools" if tools else "response_format") from error
