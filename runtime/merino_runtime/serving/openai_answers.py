"""Answers in the form of OpenAI's chat completions and completions, whole and in chunks."""
from typing import Any, Dict, List, Optional, Tuple

from merino_runtime import __version__
from merino_runtime.generation.generate import Likely
from merino_runtime.generation.text import Tokenizer
from merino_runtime.serving.choice import Call, Choice, Delta, arguments_text, one_line
from merino_runtime.serving.openai_requests import AnswerForm
from merino_runtime.serving.requests import Event, Piece, Progress, RefusedError, Used

Json = Dict[str, Any]
REASONS = {"stop": "stop"}  # all others are `length`


def error_of(refusal: RefusedError) -> Json:
    return {"error": {"message": str(refusal), "type": refusal.kind, "param": refusal.param,
                      "code": refusal.code or refusal.status}}


class Answer:
    """Of one request, which may have several prompts. `take` gives what a stream writes for an event."""
    content_type = "text/event-stream"
    error_of = staticmethod(error_of)

    def __init__(self, form: AnswerForm, count: int, tokenizer: Tokenizer) -> None:
        self.form, self.stream, self._tokenizer = form, form.stream, tokenizer
        self.choices = [Choice(form.chat, form.thinks, form.tools) for _ in range(count)]
        self._begun = [False] * count
        self._offsets = [0] * count  # of the next token in the text, where each token has one

    @property
    def over(self) -> bool:
        return all(choice.reason for choice in self.choices)

    @property
    def refusal(self) -> Optional[RefusedError]:
        return next((choice.refusal for choice in self.choices if choice.refusal), None)

    def take(self, index: int, event: Event) -> bytes:
        """index: of the prompt."""
        if self.over:
            return b""
        choice = self.choices[index]
        calls = len(choice.calls)
        deltas = choice.take(event)
        if not self.stream:
            return b""
        if choice.refusal:
            return b"".join([_data(error_of(choice.refusal)), DONE])
        if isinstance(event, Progress):
            return f": {event.ids} of {event.total} tokens of the prompt\n\n".encode("ascii")
        chunks = self._chat_chunks(index, event, deltas, calls) if self.form.chat else \
            self._text_chunks(index, event, deltas)
        if choice.reason:
            chunks += self._last_chunks(index)
        return b"".join([*map(_data, chunks), *([DONE] if self.over else [])])

    def whole(self) -> Json:
        kind = "chat.completion" if self.form.chat else "text_completion"
        choices = [self._chat_choice(index) if self.form.chat else self._text_choice(index)
                   for index in range(len(self.choices))]
        return dict(self._head(kind), choices=choices, usage=self._usage(), **self._extras())

    def _head(self, kind: str) -> Json:
        return {"id": self.form.id, "object": kind, "created": self.form.created, "model": self.form.model,
                "system_fingerprint": f"merino {__version__}"}

    def _chunk(self, *choices: Json) -> Json:
        chunk = self._head("chat.completion.chunk" if self.form.chat else "text_completion")
        chunk["choices"] = list(choices)
        if self.form.usage:
            chunk["usage"] = None
        if self.form.counts:
            chunk["timings"] = {"predicted_n": sum(choice.tokens for choice in self.choices)}
        return chunk

    def _chat_chunks(self, index: int, event: Event, deltas: List[Delta], calls: int) -> List[Json]:
        logprobs = self._chat_logprobs([event]) if self.form.logprobs and isinstance(event, Piece) else None
        parts: List[Json] = []
        for delta in deltas:
            if isinstance(delta, Call):
                parts.append({"tool_calls": [_call(delta, index=calls)]})
                calls += 1
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
        if not text and not (self.form.logprobs and isinstance(event, Piece)):
            return []
        pieces = [event] if isinstance(event, Piece) and event.id is not None else []
        logprobs = self._text_logprobs(index, pieces) if self.form.logprobs else None
        return [self._chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})]

    def _last_chunks(self, index: int) -> List[Json]:
        last: Json = {"index": index, "logprobs": None, "finish_reason": self._reason(index)}
        last["delta" if self.form.chat else "text"] = {} if self.form.chat else ""
        chunks = [self._chunk(last)]
        if self.over:
            chunks[0].update(self._extras())
            if self.form.usage:
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
        logprobs = self._chat_logprobs(choice.pieces) if self.form.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._reason(index)}

    def _text_choice(self, index: int) -> Json:
        choice = self.choices[index]
        logprobs = self._text_logprobs(index, choice.pieces) if self.form.logprobs else None
        return {"index": index, "text": self._echo(index) + choice.content, "logprobs": logprobs,
                "finish_reason": self._reason(index)}

    def _echo(self, index: int) -> str:
        return self.form.echo[index] if self.form.echo else ""

    def _reason(self, index: int) -> str:
        choice = self.choices[index]
        if choice.calls and choice.reason == "stop":
            return "tool_calls"
        return REASONS.get(choice.reason or "", "length")

    def _token(self, token_id: int) -> Tuple[str, List[int]]:
        data = self._tokenizer.bytes_of(token_id)
        return data.decode("utf-8", "replace"), list(data)

    def _chat_logprobs(self, events: List[Any]) -> Json:
        def entry(token_id: int, logprob: float) -> Json:
            text, data = self._token(token_id)
            return {"token": text, "logprob": logprob, "bytes": data}

        entries = []
        for piece in events:
            if piece.id is not None and piece.likely is not None:
                tops = [entry(*each) for each in piece.likely.top]
                entries.append(dict(entry(piece.id, piece.likely.logprob), top_logprobs=tops))
        return {"content": entries, "refusal": None}

    def _text_logprobs(self, index: int, pieces: List[Piece]) -> Json:
        logprobs: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for piece in pieces:
            likely: Optional[Likely] = piece.likely
            text = self._token(piece.id or 0)[0]
            logprobs["tokens"].append(text)
            logprobs["token_logprobs"].append(None if likely is None else likely.logprob)
            logprobs["top_logprobs"].append(
                None if likely is None else {self._token(each)[0]: value for each, value in reversed(likely.top)})
            logprobs["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(text)
        return logprobs

    def _usage(self) -> Json:
        used = [choice.used for choice in self.choices if choice.used]
        prompt, tokens = sum(one.prompt_tokens for one in used), sum(one.tokens for one in used)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
                "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in used)}}

    def _extras(self) -> Json:
        """What goes beyond OpenAI's answer."""
        used, first = self.choices[0].used, self.choices[0]
        if used is None:
            return {}
        extras: Json = {"timings": timings(used), "stop_reason": first.reason}
        for name, value in (("energy", used.energy), ("thermal", used.thermal)):
            if value is not None:
                extras[name] = value
        return extras


DONE = b"data: [DONE]\n\n"


def _data(value: Json) -> bytes:
    return b"data: " + one_line(value) + b"\n\n"


def _call(call: Call, **index: int) -> Json:
    return dict(index, id=call.id, type="function", function={"name": call.name, "arguments": arguments_text(call)})


def timings(used: Used) -> Json:
    """As llama.cpp's server has them, and the wait for a slot."""
    computed, steps = used.prompt_tokens - used.cached_tokens, max(0, used.tokens - 1)
    return {"cache_n": used.cached_tokens, "prompt_n": computed, "prompt_ms": used.prefill_ms,
            "prompt_per_token_ms": used.prefill_ms / computed if computed else 0.0,
            "prompt_per_second": 1000 * computed / used.prefill_ms if used.prefill_ms else 0.0,
            "predicted_n": used.tokens, "predicted_ms": used.decode_ms,
            "predicted_per_token_ms": used.decode_ms / steps if steps else 0.0,
            "predicted_per_second": 1000 * steps / used.decode_ms if used.decode_ms else 0.0,
            "queue_ms": used.waited_ms, "total_ms": used.total_ms}
