"""A request to a model, the events of its answer, and why it is refused. Knows no HTTP and no schema."""
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Likely
from merino_runtime.sampling import Sampling

BAD_REQUEST, UNKNOWN_KEY, FORBIDDEN, NOT_FOUND, WRONG_METHOD = 400, 401, 403, 404, 405
TOO_SLOW, TOO_LARGE, TOO_MANY, FAULT, UNAVAILABLE = 408, 413, 429, 500, 503
KINDS = {TOO_MANY: "rate_limit_error", FAULT: "server_error", UNAVAILABLE: "unavailable_error"}


class RefusedError(MerinoError):
    """A request that is not met. status: of HTTP. param: the field that is wrong. code: for programs, as OpenAI names
    them. retry_s: when it may be met."""

    def __init__(self, message: str, status: int = BAD_REQUEST, param: Optional[str] = None, code: Optional[str] = None,
                 retry_s: Optional[int] = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_s = status, param, code, retry_s

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "invalid_request_error")


class GenerationRequest(NamedTuple):
    """One answer of one model."""
    ids: Tuple[int, ...]  # the prompt
    max_new_tokens: int
    sampling: Sampling
    stops: Tuple[str, ...] = ()
    ignore_eos: bool = False
    top: Optional[int] = None  # number of likeliest tokens whose log-probabilities are returned beside each token's own
    begins: bool = False  # the text begins with the answer, as in a chat
    background: bool = False  # gives way to the requests of people
    watched: bool = False  # streamed: somebody reads along, and is likely to go on
    limit_s: Optional[float] = None  # wall-clock time, the wait for a slot included
    client: str = ""  # requests of several clients take turns
    grammar: Any = None  # what the answer must follow
    echo: bool = False  # the prompt's tokens come first; with `top`, with their log-probabilities


class Progress(NamedTuple):
    """How far the prefill is. The first one counts the ids that a slot's cache held."""
    ids: int
    total: int


class Piece(NamedTuple):
    """A token; or, with id None, text that was withheld until the end. Or several tokens in one."""
    id: Optional[int]
    text: str
    likely: Optional[Likely] = None
    of_prompt: bool = False
    tokens: int = 1


class Used(NamedTuple):
    """What an answer took. Milliseconds of prefill and decode leave out the turns of other requests."""
    prompt_tokens: int
    cached_tokens: int  # of the prompt, held by the cache
    tokens: int
    waited_ms: float  # for a slot
    prefill_ms: float
    decode_ms: float
    total_ms: float  # from the request on
    energy: Optional[Dict[str, Any]] = None
    thermal: Optional[Dict[str, Any]] = None


class Ended(NamedTuple):
    reason: str  # stop (a stop string, or an end-of-text token), length, context, time, cancelled
    used: Used


class Failed(NamedTuple):
    refusal: RefusedError


Event = Union[Progress, Piece, Ended, Failed]
