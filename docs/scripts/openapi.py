"""docs/reference/openapi.json: the server's paths and bodies. Bounds are the code's; tests hold all to a server."""

import json
from typing import Any

from merino_edge import __version__
from merino_runtime.sampling import RANGES
from merino_runtime.serving import fields, openai_requests
from merino_runtime.serving.openai_requests import LARGEST, LONGEST_S, MOST_TOP

Schema = dict[str, Any]
TEXT, FLAG, COUNT, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}
ANY: Schema = {}


def number(low: float, high: float, what: str = "", kind: str = "number") -> Schema:
    return {"type": kind, "minimum": low, "maximum": high, **({"description": what} if what else {})}


def integer(low: int, high: int, what: str = "") -> Schema:
    return number(low, high, what, "integer")


def described(what: str, schema: Schema) -> Schema:
    return {**schema, "description": what}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def a_list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def request(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Fields that are not named are ignored; null is as if the field were absent."""
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def answer(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Nothing but these fields, all but the optional ones always."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


CALL = request(("function",), type=one_of("function"), id=TEXT, function=request(("name",), name=TEXT, arguments=ANY))
TEXT_PART = request(("type", "text"), type=one_of("text", "input_text", "output_text"), text=TEXT)
DEFAULTS = answer(temperature=NUMBER, top_p=NUMBER)
MESSAGE = request(
    ("role",),
    role=described(", ".join(openai_requests.ROLES) + ", or another one that the template has", TEXT),
    content={"anyOf": [TEXT, a_list(TEXT_PART), {"type": "null"}]},
    tool_calls=a_list(CALL),
    tool_call_id=TEXT,
    name=TEXT,
)
TOOL = request(
    ("function",), type=one_of("function"), function=request(("name",), name=TEXT, description=TEXT, parameters=ANY)
)
SAMPLING = {
    "temperature": number(*RANGES["temperature"], "0: greedy"),
    "top_k": integer(-1, LARGEST, "0 or -1: off"),
    "top_p": number(*RANGES["top_p"], "1: off"),
    "min_p": number(*RANGES["min_p"], "0: off"),
    "repetition_penalty": number(*RANGES["repetition_penalty"], "1: off"),
    "seed": integer(-(2**63), 2**63 - 1),
    "presence_penalty": number(*RANGES["presence_penalty"]),
    "frequency_penalty": number(*RANGES["frequency_penalty"]),
    "dry_multiplier": number(*RANGES["dry_multiplier"], "0: off"),
    "dry_base": number(*RANGES["dry_base"]),
    "dry_allowed_length": integer(*map(int, RANGES["dry_allowed_length"])),
    "logit_bias": {
        "type": "object",
        "maxProperties": fields.MOST_BIASES,
        "additionalProperties": number(*RANGES["logit_bias"]),
        "description": "by token id",
    },
}
STOP = {
    "anyOf": [TEXT, a_list(TEXT, maxItems=fields.MOST_STOPS)],
    "description": "the answer ends before the first of these",
}
ANSWERING = {
    **SAMPLING,
    "stop": STOP,
    "ignore_eos": described("goes on after an end-of-text token", FLAG),
    "priority": described("background gives way to people, token by token", one_of("normal", "background")),
    "max_seconds": number(0, LONGEST_S, "the answer ends after this time, the wait included"),
}
STREAMING = {
    "model": described("a name of /v1/models; absent: the first", TEXT),
    "stream": FLAG,
    "n": integer(1, openai_requests.MOST_PROMPTS, "answers per prompt, with seeds that follow each other"),
    "best_of": described("the value of n", COUNT),
    "stream_options": request(include_usage=FLAG),
    "timings_per_token": described("each chunk of a stream has the number of tokens so far", FLAG),
}
RESPONSE_FORMAT = request(
    type=one_of(*openai_requests.FORMATS),
    json_schema=request(("schema",), schema=ANY, name=TEXT, strict=FLAG),
    schema=described("of json_object, as in llama.cpp", ANY),
)
CONSTRAINING = {
    "response_format": RESPONSE_FORMAT,
    "json_schema": described("a schema, as in llama.cpp", ANY),
    "guided_json": described("a schema, as in vLLM", ANY),
    "guided_regex": described("the whole answer matches it", TEXT),
    "guided_choice": described("the answer is one of these", a_list(TEXT, minItems=1)),
    "guided_grammar": described("as grammar", TEXT),
    "grammar": described("in GBNF, as in llama.cpp; behind a line %llguidance in the language of llguidance", TEXT),
    "structured_outputs": described(
        "one of them, as in vLLM", request(json=ANY, regex=TEXT, choice=a_list(TEXT, minItems=1), grammar=TEXT)
    ),
}
ALLOWED_TOOLS = request(("type",), type=one_of("allowed_tools"), allowed_tools=ANY, mode=TEXT, tools=ANY)
MOST_TOKENS = integer(-1, LARGEST, "-1: as many as fit")
CHAT = request(
    ("messages",),
    messages=a_list(MESSAGE, minItems=1, maxItems=openai_requests.MOST_MESSAGES),
    **STREAMING,
    **ANSWERING,
    **CONSTRAINING,
    max_tokens=MOST_TOKENS,
    max_completion_tokens=integer(-1, LARGEST, "clamped to what the context holds; -1: as many as fit"),
    logprobs=FLAG,
    top_logprobs=integer(0, MOST_TOP),
    tools=a_list(TOOL, maxItems=openai_requests.MOST_TOOLS),
    tool_choice={"anyOf": [one_of("none", "auto", "required"), CALL, ALLOWED_TOOLS]},
    continue_final_message=described("the answer continues the last message, which is the assistant's", FLAG),
    add_generation_prompt=FLAG,
    chat_template_kwargs=request(enable_thinking=FLAG),
    reasoning_effort=described("none: no thinking", TEXT),
)
IDS = a_list({"type": "integer", "minimum": 0})
COMPLETIONS = request(
    ("prompt",),
    **STREAMING,
    **ANSWERING,
    prompt={"anyOf": [TEXT, IDS, a_list({"anyOf": [TEXT, IDS]}, maxItems=openai_requests.MOST_PROMPTS)]},
    max_tokens=integer(-1, LARGEST, "by default 16; 0 with echo alone; -1: as many as fit"),
    **CONSTRAINING,
    echo=FLAG,
    logprobs=integer(0, MOST_TOP),
)
EMBEDDED = {"model": STREAMING["model"], "max_seconds": ANSWERING["max_seconds"], "priority": ANSWERING["priority"]}
EMBEDDINGS = request(
    ("input",),
    **EMBEDDED,
    input={**COMPLETIONS["properties"]["prompt"], "description": "texts or token ids"},
    encoding_format=one_of("float", "base64"),
    dimensions=described("the model's width", COUNT),
)
OPTIONS = request(
    num_predict=described("-1, -2: as many as fit", {"type": "integer", "maximum": LARGEST}),
    repeat_penalty=SAMPLING["repetition_penalty"],
    stop=STOP,
    ignore_eos=FLAG,
    **SAMPLING,
)
OLLAMA = {
    "model": TEXT,
    "name": described("as model, of older clients", TEXT),
    "stream": described("by default true", FLAG),
    "think": ANY,
    "format": described('"json", or a JSON schema', ANY),
    "options": OPTIONS,
    "priority": ANSWERING["priority"],
    "max_seconds": ANSWERING["max_seconds"],
}

TIMINGS = answer(
    cache_n=COUNT,
    prompt_n=COUNT,
    prompt_ms=NUMBER,
    prompt_per_token_ms=NUMBER,
    prompt_per_second=NUMBER,
    predicted_n=COUNT,
    predicted_ms=NUMBER,
    predicted_per_token_ms=NUMBER,
    predicted_per_second=NUMBER,
    queue_ms=NUMBER,
    total_ms=NUMBER,
)
USAGE = answer(
    prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT, prompt_tokens_details=answer(cached_tokens=COUNT)
)
ENERGY = described("where the board has a power sensor", answer(joules=NUMBER, sensor=TEXT))
THERMAL = described("with --set max_temperature", answer(ceiling_c=NUMBER, hottest_c=or_null(NUMBER), paused_ms=NUMBER))
TOKEN = {"token": TEXT, "logprob": NUMBER, "bytes": a_list(COUNT)}
CHAT_LOGPROBS = answer(content=a_list(answer(**TOKEN, top_logprobs=a_list(answer(**TOKEN)))), refusal={"type": "null"})
TEXT_LOGPROBS = answer(
    tokens=a_list(TEXT),
    token_logprobs=a_list(or_null(NUMBER)),
    text_offset=a_list(COUNT),
    top_logprobs=a_list(or_null({"type": "object", "additionalProperties": NUMBER})),
)
ANSWERED_CALL = answer(
    ("index",), index=COUNT, id=TEXT, type=one_of("function"), function=answer(name=TEXT, arguments=TEXT)
)
HEAD = {"id": TEXT, "created": COUNT, "model": TEXT, "system_fingerprint": TEXT}
EXTRAS = {
    "usage": ref("Usage"),
    "timings": ref("Timings"),
    "energy": ENERGY,
    "thermal": THERMAL,
    "stop_reason": one_of("stop", "length", "context", "time", "cancelled"),
}
REASON = one_of("stop", "length", "tool_calls")
CHAT_ANSWER = answer(
    ("energy", "thermal"),
    **HEAD,
    object=one_of("chat.completion"),
    **EXTRAS,
    choices=a_list(
        answer(
            index=COUNT,
            logprobs=or_null(CHAT_LOGPROBS),
            finish_reason=REASON,
            message=answer(
                ("reasoning_content", "tool_calls"),
                role=one_of("assistant"),
                content=or_null(TEXT),
                refusal={"type": "null"},
                reasoning_content=TEXT,
                tool_calls=a_list(ANSWERED_CALL),
            ),
        )
    ),
)
DELTA = answer(
    ("role", "content", "reasoning_content", "tool_calls"),
    role=one_of("assistant"),
    content=TEXT,
    reasoning_content=TEXT,
    tool_calls=a_list(ANSWERED_CALL),
)
CHUNK = answer(
    ("usage", "timings", "stop_reason", "energy", "thermal"),
    **HEAD,
    object=one_of("chat.completion.chunk"),
    **{**EXTRAS, "usage": or_null(ref("Usage")), "timings": {"anyOf": [ref("Timings"), answer(predicted_n=COUNT)]}},
    choices=a_list(answer(index=COUNT, delta=DELTA, logprobs=or_null(CHAT_LOGPROBS), finish_reason=or_null(REASON))),
)
TEXT_ANSWER = answer(
    ("energy", "thermal"),
    **HEAD,
    object=one_of("text_completion"),
    **EXTRAS,
    choices=a_list(answer(index=COUNT, text=TEXT, logprobs=or_null(TEXT_LOGPROBS), finish_reason=REASON)),
)
MODEL = answer(
    id=TEXT,
    object=one_of("model"),
    created=COUNT,
    owned_by=TEXT,
    parent=or_null(TEXT),
    meta=answer(n_ctx_train=COUNT, n_vocab=COUNT, n_params=COUNT, size=COUNT, chat=FLAG, defaults=DEFAULTS),
)
MODELS = answer(object=one_of("list"), data=a_list(MODEL))
RESPONSES = request(
    ("input",),
    input={"anyOf": [TEXT, a_list(described("message, function_call, function_call_output or reasoning", ANY))]},
    instructions=TEXT,
    max_output_tokens=MOST_TOKENS,
    text=request(format=described("text, json_object, or json_schema with a schema", ANY)),
    tools=a_list(described("of type function", ANY)),
    tool_choice=described("auto, none, required, a function or allowed_tools", ANY),
    parallel_tool_calls=FLAG,
    reasoning=described("effort none: no thinking", ANY),
    include=a_list(described("message.output_text.logprobs is refused, as is top_logprobs", TEXT)),
    model=STREAMING["model"],
    stream=FLAG,
    timings_per_token=FLAG,
    **ANSWERING,
)
RESPONSE = answer(
    ("energy", "thermal", "timings", "stop_reason"),
    id=TEXT,
    object=one_of("response"),
    created_at=COUNT,
    status=one_of("in_progress", "completed", "incomplete"),
    model=TEXT,
    output=a_list(described("message, reasoning or function_call", ANY)),
    error={"type": "null"},
    incomplete_details=ANY,
    usage=ANY,
    **dict.fromkeys(
        (
            *("instructions", "max_output_tokens", "metadata", "user", "temperature", "top_p", "tools", "tool_choice"),
            *("text", "reasoning", "store", "parallel_tool_calls", "previous_response_id", "truncation", "background"),
        ),
        ANY,
    ),
    **{name: value for name, value in EXTRAS.items() if name != "usage"},
)
ERROR = answer(error=answer(message=TEXT, type=TEXT, param=or_null(TEXT), code={"anyOf": [TEXT, COUNT]}))
STATS = answer(
    up_s=NUMBER,
    rss_mb=NUMBER,
    peak_rss_mb=NUMBER,
    running=COUNT,
    waiting=COUNT,
    prefill_tok_s=or_null(NUMBER),
    decode_tok_s=or_null(NUMBER),
    temperatures_c=or_null({"type": "object", "additionalProperties": NUMBER}),
    models=a_list(
        answer(
            model=TEXT,
            context=COUNT,
            loaded=FLAG,
            slots=a_list(answer(**{"for": one_of("person", "background")}, busy=FLAG, tokens=COUNT)),
        )
    ),
    prompt_tokens_total=COUNT,
    prompt_seconds_total=NUMBER,
    tokens_predicted_total=COUNT,
    tokens_predicted_seconds_total=NUMBER,
    batches_total=COUNT,
    tokens_batched_total=COUNT,
    prompt_tokens_cached_total=COUNT,
    requests_total=COUNT,
    requests_cancelled_total=COUNT,
    requests_failed_total=COUNT,
)
DETAILS = answer(
    parent_model=TEXT,
    format=one_of("onnx"),
    family=TEXT,
    families=a_list(TEXT),
    parameter_size=TEXT,
    quantization_level=TEXT,
)
TAG = {"name": TEXT, "model": TEXT, "digest": TEXT, "size": COUNT, "details": DETAILS}
OLLAMA_USED = dict.fromkeys(
    ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
    COUNT,
)
OLLAMA_HEAD = {"model": TEXT, "created_at": TEXT, "done": FLAG, "done_reason": one_of("stop", "length", "load")}
OLLAMA_OPTIONAL = (*OLLAMA_USED, "done_reason", "energy", "thermal", "thinking")
OLLAMA_CHAT = answer(
    OLLAMA_OPTIONAL,
    **OLLAMA_HEAD,
    **OLLAMA_USED,
    energy=ENERGY,
    thermal=THERMAL,
    message=answer(
        ("thinking", "tool_calls"),
        role=one_of("assistant"),
        content=TEXT,
        thinking=TEXT,
        tool_calls=a_list(answer(function=answer(index=COUNT, name=TEXT, arguments={"type": "object"}))),
    ),
)
OLLAMA_GENERATE = answer(
    OLLAMA_OPTIONAL, **OLLAMA_HEAD, **OLLAMA_USED, energy=ENERGY, thermal=THERMAL, response=TEXT, thinking=TEXT
)
SHOWN = answer(
    details=DETAILS,
    capabilities=a_list(TEXT),
    template=TEXT,
    parameters=TEXT,
    license=TEXT,
    modelfile=TEXT,
    modified_at=TEXT,
    model_info={"type": "object"},
)
SCHEMAS = {
    "ChatRequest": CHAT,
    "Chat": CHAT_ANSWER,
    "ChatChunk": CHUNK,
    "CompletionsRequest": COMPLETIONS,
    "Completions": TEXT_ANSWER,
    "EmbeddingsRequest": EMBEDDINGS,
    "Embeddings": answer(
        object=one_of("list"),
        model=TEXT,
        data=a_list(
            answer(object=one_of("embedding"), index=COUNT, embedding={"anyOf": [a_list(NUMBER), TEXT]}),
            maxItems=openai_requests.MOST_EMBEDDED,
        ),
        usage=answer(prompt_tokens=COUNT, total_tokens=COUNT),
    ),
    "OllamaEmbedRequest": request(
        ("input",), **EMBEDDED, input=EMBEDDINGS["properties"]["input"], truncate=described("by default true", FLAG)
    ),
    "OllamaEmbed": answer(model=TEXT, embeddings=a_list(a_list(NUMBER)), prompt_eval_count=COUNT),
    "Models": MODELS,
    "Model": MODEL,
    "ResponsesRequest": RESPONSES,
    "Response": RESPONSE,
    "ResponseEvent": {"type": "object", "properties": {"type": TEXT, "sequence_number": COUNT}},
    "Stats": STATS,
    "Error": ERROR,
    "Usage": USAGE,
    "Timings": TIMINGS,
    "OllamaChatRequest": request(**OLLAMA, messages=CHAT["properties"]["messages"], tools=CHAT["properties"]["tools"]),
    "OllamaChat": OLLAMA_CHAT,
    "OllamaGenerateRequest": request(
        **OLLAMA, prompt=TEXT, system=TEXT, raw=described("without the chat template", FLAG)
    ),
    "OllamaGenerate": OLLAMA_GENERATE,
    "OllamaError": answer(error=TEXT),
    "OllamaNamed": request(model=TEXT, name=TEXT),
    "OllamaShown": SHOWN,
    "OllamaTags": answer(models=a_list(answer(**TAG, modified_at=TEXT))),
    "OllamaRunning": answer(models=a_list(answer(**TAG, expires_at=TEXT, size_vram=COUNT, context_length=COUNT))),
    "Health": answer(status=one_of("ok")),
}


def content(schema: Schema, kind: str = "application/json") -> Schema:
    return {"content": {kind: {"schema": schema}}}


def operation(what: str, given: str | None, answered: Schema, public: bool = False, ollama: bool = False) -> Schema:
    body = {"requestBody": {"required": True, **content(ref(given))}} if given else {}
    error = {
        "description": "refused, with a message that names what is allowed",
        **content(ref("OllamaError" if ollama else "Error")),
    }
    security: Schema = {"security": []} if public else {}
    return {
        "summary": what,
        **security,
        **body,
        "responses": {"200": {"description": "done", **answered}, "default": error},
    }


def get(what: str, answered: Schema, public: bool = False, ollama: bool = False) -> Schema:
    return {"get": operation(what, None, answered, public, ollama)}


def post(what: str, given: str, answered: Schema, ollama: bool = False) -> Schema:
    return {"post": operation(what, given, answered, ollama=ollama)}


def streamed(whole: str, part: str, kind: str) -> Schema:
    return {"content": {"application/json": {"schema": ref(whole)}, kind: {"schema": ref(part)}}}


EVENTS, LINES = "text/event-stream", "application/x-ndjson"
HEALTH = get("503 while a model is loaded, then 200", content(ref("Health")), public=True)
PATHS: Schema = {
    "/": get("A page to talk with the model", content(TEXT, "text/html"), public=True),
    "/health": HEALTH,
    "/v1/health": HEALTH,
    "/v1/models": get("The bundles by name", content(ref("Models"))),
    "/v1/models/{id}": get("A bundle by its name", content(ref("Model"))),
    "/v1/responses": post(
        "OpenAI's Responses API; with stream as typed events",
        "ResponsesRequest",
        streamed("Response", "ResponseEvent", EVENTS),
    ),
    "/v1/chat/completions": post(
        "An answer to messages; with stream as events `data: ChatChunk`, the last one [DONE]",
        "ChatRequest",
        streamed("Chat", "ChatChunk", EVENTS),
    ),
    "/v1/completions": post(
        "Continues a text or token ids", "CompletionsRequest", streamed("Completions", "Completions", EVENTS)
    ),
    "/v1/embeddings": post(
        "The mean of a text's last hidden states, with length 1", "EmbeddingsRequest", content(ref("Embeddings"))
    ),
    "/metrics": get("For Prometheus", content(TEXT, "text/plain")),
    "/v1/stats": get("For people: speeds, memory, what each slot holds", content(ref("Stats"))),
    "/api/chat": post(
        "Ollama: an answer to messages, by default as lines of JSON",
        "OllamaChatRequest",
        streamed("OllamaChat", "OllamaChat", LINES),
        ollama=True,
    ),
    "/api/generate": post(
        "Ollama: continues a prompt",
        "OllamaGenerateRequest",
        streamed("OllamaGenerate", "OllamaGenerate", LINES),
        ollama=True,
    ),
    "/api/embed": post("Ollama: embeddings", "OllamaEmbedRequest", content(ref("OllamaEmbed")), ollama=True),
    "/api/show": post("Ollama: facts of a model", "OllamaNamed", content(ref("OllamaShown")), ollama=True),
    "/api/pull": post(
        "Ollama: success where the model is served; nothing is fetched",
        "OllamaNamed",
        content(answer(status=one_of("success"))),
        ollama=True,
    ),
    "/api/tags": get("Ollama: the models", content(ref("OllamaTags")), ollama=True),
    "/api/ps": get("Ollama: the loaded models", content(ref("OllamaRunning")), ollama=True),
    "/api/version": get("The version", content(answer(version=TEXT)), ollama=True),
}
DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "merino serve",
        "version": __version__,
        "description": "Fields of a request that are not named are ignored. Paths of /v1 are also served without it.",
    },
    "servers": [{"url": "http://127.0.0.1:8080"}],
    "security": [{}, {"key": []}],
    "paths": PATHS,
    "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": SCHEMAS},
}


def text() -> str:
    return json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n"
