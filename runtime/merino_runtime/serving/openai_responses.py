"""Responses in the form of OpenAI's chat completions and completions, whole or streamed in chunks."""
import base64
import struct
from typing import Any, Dict, List, Optional

from merino_runtime import __version__
from merino_runtime.generation.text import Tokenizer
from merino_runtime.serving.choice import Call, Choice, Delta, ResponseOptions, Writer, comment_of, one_line
from merino_runtime.serving.requests import Event, Progress, RefusedError, TextChunk, Usage

Json = Dict[str, Any]
DONE = b"data: [DONE]\n\n"


def error_of(refusal: RefusedError) -> Json:
    return {"error": {"message": str(refusal), "type": refusal.kind, "param": refusal.param,
                      "code": refusal.code or refusal.status}}


class EmbeddingWriter(Writer):
    error_of = staticmethod(error_of)

    @property
    def refusal(self) -> Optional[RefusedError]:
        late = any(choice.reason == "time" for choice in self.choices)
        return RefusedError("the request's time is over. Allow more.", 503) if late else super().refusal

    @property
    def prompt_tokens(self) -> int:
        return sum(choice.usage.prompt_tokens for choice in self.choices if choice.usage)

    def whole(self) -> Json:
        vectors: List[Any] = [choice.embedding for choice in self.choices]
        if self.options.base64:
            vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
        return {"object": "list", "model": self.options.model,
                "usage": dict.fromkeys(("prompt_tokens", "total_tokens"), self.prompt_tokens),
                "data": [{"object": "embedding", "index": index, "embedding": vector}
                         for index, vector in enumerate(vectors)]}


class ResponseWriter(Writer):
    """Writes the response to one request, which may have several prompts."""
    error_of = staticmethod(error_of)

    def __init__(self, options: ResponseOptions, count: int, tokenizer: Tokenizer) -> None:
        super().__init__(options, count, tokenizer)
        self._begun = [False] * count
        self._offsets = [0] * count  # of the next token in the text, where each token has one

    def written(self, index: int, event: Event, deltas: List[Delta]) -> bytes:
        choice = self.choices[index]
        if choice.refusal:
            return b"".join([_data(error_of(choice.refusal)), DONE])
        if isinstance(event, Progress):
            return comment_of(event)
        chunks = self._chat_chunks(index, event, deltas) if self.options.chat else \
            self._text_chunks(index, event, deltas)
        if choice.reason:
            chunks += self._last_chunks(index)
        return b"".join([*map(_data, chunks), *([DONE] if self.over else [])])

    def whole(self) -> Json:
        kind = "chat.completion" if self.options.chat else "text_completion"
        choices = [self._chat_choice(index) if self.options.chat else self._text_choice(index)
                   for index in range(len(self.choices))]
        return dict(self._head(kind), choices=choices, usage=self._usage(), **extras(self.choices[0]))

    def _head(self, kind: str) -> Json:
        return {"id": ("chatcmpl-" if self.options.chat else "cmpl-") + self.id, "object": kind,
                "created": self.created_s, "model": self.options.model, "system_fingerprint": f"merino {__version__}"}

    def _chunk(self, *choices: Json) -> Json:
        chunk = self._head("chat.completion.chunk" if self.options.chat else "text_completion")
        chunk["choices"] = list(choices)
        if self.options.usage:
            chunk["usage"] = None
        if self.options.counts:
            chunk["timings"] = {"predicted_n": sum(choice.tokens for choice in self.choices)}
        return chunk

    def _chat_chunks(self, index: int, event: Event, deltas: List[Delta]) -> List[Json]:
        logprobs = self._chat_logprobs([event]) if self.options.logprobs and isinstance(event, TextChunk) else None
        parts: List[Json] = []
        for delta in deltas:
            if isinstance(delta, Call):
                parts.append({"tool_calls": [_call(delta, index=self.choices[index].calls.index(delta))]})
            else:
                parts.append({"reasoning_content" if delta.thinking else "content": delta.text})
        if logprobs and logprobs["content"] and not parts:
            parts.append({"content": ""})
        if not self._begun[index] and (parts or self.choices[index].reason):
            self._begun[index] = True
            parts.insert(0, {"role": "assistant", "content": ""})
        chunks = [self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
                  for delta in parts]
        if chunks and logprobs:
            chunks[-1]["choices"][0]["logprobs"] = logprobs
        return chunks

    def _text_chunks(self, index: int, event: Event, deltas: List[Delta]) -> List[Json]:
        text = "".join(delta.text for delta in deltas if not isinstance(delta, Call))
        if not self._begun[index]:
            self._begun[index] = True
            text = self._echo(index) + text
        if not text and not (self.options.logprobs and isinstance(event, TextChunk)):
            return []
        tokens = [event] if isinstance(event, TextChunk) and event.id is not None else []
        logprobs = self._text_logprobs(index, tokens) if self.options.logprobs else None
        return [self._chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})]

    def _last_chunks(self, index: int) -> List[Json]:
        last: Json = {"index": index, "logprobs": None, "finish_reason": self._reason(index)}
        last["delta" if self.options.chat else "text"] = {} if self.options.chat else ""
        chunks = [self._chunk(last)]
        if self.over:
            chunks[0].update(extras(self.choices[0]))
            if self.options.usage:
                chunks.append(dict(self._chunk(), usage=self._usage()))
        return chunks

    def _chat_choice(self, index: int) -> Json:
        choice = self.choices[index]
        message: Json = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.thinking:
            message["reasoning_content"] = choice.thinking
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [_call(call) for call in choice.calls]
        logprobs = self._chat_logprobs(choice.chunks) if self.options.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._reason(index)}

    def _text_choice(self, index: int) -> Json:
        choice = self.choices[index]
        logprobs = self._text_logprobs(index, choice.chunks) if self.options.logprobs else None
        return {"index": index, "text": self._echo(index) + choice.content, "logprobs": logprobs,
                "finish_reason": self._reason(index)}

    def _echo(self, index: int) -> str:
        return self.options.echo[index // self.options.n] if self.options.echo else ""

    def _reason(self, index: int) -> str:
        choice = self.choices[index]
        if choice.calls and choice.reason == "stop":
            return "tool_calls"
        return "stop" if choice.reason == "stop" else "length"

    def _token(self, token_id: int) -> str:
        return self.tokenizer.bytes_of(token_id).decode("utf-8", "replace")

    def _chat_logprobs(self, events: List[Any]) -> Json:
        def entry(token_id: int, logprob: float) -> Json:
            data = self.tokenizer.bytes_of(token_id)
            return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

        entries = [dict(entry(chunk.id, chunk.logprobs.logprob), top_logprobs=[
            entry(token_id, logprob) for token_id, logprob in chunk.logprobs.top])
            for chunk in events if chunk.id is not None and chunk.logprobs is not None]
        return {"content": entries, "refusal": None}

    def _text_logprobs(self, index: int, chunks: List[TextChunk]) -> Json:
        logprobs: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for chunk in chunks:
            known, text = chunk.logprobs, self._token(chunk.id or 0)
            logprobs["tokens"].append(text)
            logprobs["token_logprobs"].append(known and known.logprob)
            logprobs["top_logprobs"].append(
                known and dict({text: known.logprob}, **{
                    self._token(token_id): logprob for token_id, logprob in reversed(known.top)}))
            logprobs["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(text)
        return logprobs

    def _usage(self) -> Json:
        tokens = sum(choice.usage.tokens for choice in self.choices if choice.usage)
        usages = [choice.usage for choice in self.choices[::self.options.n] if choice.usage]  # of each prompt once
        prompt = sum(usage.prompt_tokens for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
                "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)}}


def extras(choice: Choice) -> Json:
    """Return the fields beyond OpenAI's."""
    if choice.usage is None:
        return {}
    costs = {name: value for name, value in (("energy", choice.usage.energy), ("thermal", choice.usage.thermal))
             if value is not None}
    return dict(costs, timings=timings(choice.usage), stop_reason=choice.reason)


def _data(value: Json) -> bytes:
    return b"data: " + one_line(value) + b"\n\n"


def _call(call: Call, **index: int) -> Json:
    return dict(index, id=call.id, type="function", function={"name": call.name, "arguments": call.arguments_text})


def timings(usage: Usage) -> Json:
    """Return the timings under llama.cpp's names, and the wait for a slot."""
    computed, steps = usage.prompt_tokens - usage.cached_tokens, max(0, usage.tokens - 1)
    return {"cache_n": usage.cached_tokens, "prompt_n": computed, "prompt_ms": usage.prefill_ms,
            "prompt_per_token_ms": usage.prefill_ms / computed if computed else 0.0,
            "prompt_per_second": 1000 * computed / usage.prefill_ms if usage.prefill_ms else 0.0,
            "predicted_n": usage.tokens, "predicted_ms": usage.decode_ms,
            "predicted_per_token_ms": usage.decode_ms / steps if steps else 0.0,
            "predicted_per_second": 1000 * steps / usage.decode_ms if usage.decode_ms else 0.0,
            "queue_ms": usage.waited_ms, "total_ms": usage.total_ms}
