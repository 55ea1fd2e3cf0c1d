"""Requests to a model, the events of their completions, and refusals. Knows neither HTTP nor a client's schema."""
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple, Union

from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

if TYPE_CHECKING:
    from merino_runtime.generation.generate import TokenLogprobs  # imports numpy

KINDS = {429: "rate_limit_error", 500: "server_error", 503: "unavailable_error"}


class RefusedError(MerinoError):
    """A refused request. status: HTTP status. param: the wrong field. code: OpenAI's error code. retry_s: when the
    client may try again."""

    def __init__(self, message: str, status: int = 400, param: Optional[str] = None, code: Optional[str] = None,
                 retry_s: Optional[int] = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_s = status, param, code, retry_s
        self.kind = KINDS.get(status, "invalid_request_error")


class Client(NamedTuple):
    """Clients take turns. owner: the name of the client's key, and the adapter; only its own requests share
    prefixes."""
    name: str = ""
    owner: str = ""


class GenerationRequest(NamedTuple):
    """One prompt for one model."""
    ids: Tuple[int, ...]  # the prompt
    max_new_tokens: int
    sampling: Sampling
    stops: Tuple[str, ...] = ()
    ignore_eos: bool = False
    top: Optional[int] = None  # number of likeliest tokens whose log-probabilities are returned with each token
    begins: bool = False  # the text begins with the completion, as in a chat
    background: bool = False  # gives way to interactive requests
    watched: bool = False  # streamed: somebody reads along, and is likely to continue
    limit_s: Optional[float] = None  # wall-clock limit, the wait for a slot included
    client: Client = Client()
    adapter: Optional[str] = None
    grammar: Any = None  # the constraint that the text follows
    embeds: bool = False  # nothing is generated: Finished has the embedding of the prompt
    echo: bool = False  # the prompt's tokens come first; with `top`, with their log-probabilities


class Progress(NamedTuple):
    """Progress of the prefill. The first event counts the ids that the slot's cache held."""
    ids: int
    total: int


class TextChunk(NamedTuple):
    """A token, or several whose texts are joined. id None: text that was withheld until the end."""
    id: Optional[int]
    text: str
    logprobs: Optional["TokenLogprobs"] = None
    of_prompt: bool = False
    tokens: int = 1


class Usage(NamedTuple):
    """Cost of a completion. prefill_ms and decode_ms exclude the turns of other requests."""
    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt
    tokens: int = 0
    waited_ms: float = 0.0  # for a slot
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0  # from the arrival of the request
    energy: Optional[Dict[str, Any]] = None
    thermal: Optional[Dict[str, Any]] = None


class Finished(NamedTuple):
    reason: str  # stop (a stop string, or an end-of-text token), length, context, time, cancelled
    usage: Usage
    embedding: Optional[List[float]] = None


class Failed(NamedTuple):
    refusal: RefusedError


Event = Union[Progress, TextChunk, Finished, Failed]
