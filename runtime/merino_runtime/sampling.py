"""The options of a generation and of its sampling: defaults, ranges, and how the command line declares them.

Standard library only. `generation` applies them.
"""
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError


class Sampling(NamedTuple):
    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repetition_penalty: float = 1.0  # 1: off
    seed: Optional[int] = None  # None: a random one
    presence_penalty: float = 0.0  # subtracted from the logit of each token that was generated; 0: off
    frequency_penalty: float = 0.0  # the same, times how often it was generated; 0: off
    logit_bias: Tuple[Tuple[int, float], ...] = ()  # (id, what is added to its logit)
    dry_multiplier: float = 0.0  # DRY: penalty on repeating a sequence of the text; 0: off
    dry_base: float = 1.75  # the penalty is dry_multiplier * dry_base ** (length of the sequence - dry_allowed_length)
    dry_allowed_length: int = 2  # shorter sequences may be repeated


GREEDY = Sampling(temperature=0.0)
OVERFLOWS = ("stop", "error", "shift")
# Lowest and highest value; the server and its OpenAPI document have them from here.
RANGES: Dict[str, Tuple[float, float]] = {
    "temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "logit_bias": (-100, 100),
    "dry_multiplier": (0, 100), "dry_base": (1, 100), "dry_allowed_length": (1, 2 ** 20)}
INTEGERS = {"top_k": (0, 2 ** 31), "dry_allowed_length": (1, 2 ** 20), "seed": (0, 2 ** 32 - 1)}
# What `--set NAME=VALUE` of a command takes: type, help. A bool is `true` or `false`.
SAMPLING_SETTINGS: Dict[str, Tuple[type, str]] = {
    "top_k": (int, "sample from this many most likely tokens; 0: off; default 40"),
    "top_p": (float, "nucleus sampling, 1: off; default 0.95"),
    "min_p": (float, "least probability relative to the most likely token; default 0.05"),
    "repetition_penalty": (float, "1: off"),
    "presence_penalty": (float, "0: off"),
    "frequency_penalty": (float, "0: off"),
    "dry_multiplier": (float, "penalty on repeated sequences, such as 0.8; 0: off"),
    "dry_base": (float, "default 1.75"),
    "dry_allowed_length": (int, "default 2"),
    "seed": (int, "random seed; default: a random one"),
}
OPENING_SETTINGS: Dict[str, Tuple[type, str]] = {
    "threads": (int, "default: the bundle's setting"),
    "prefill_threads": (int, "default: as threads"),
    "backend": (str, "onnxruntime or tensorrt; default: tensorrt on a Jetson that has it, else the first that the "
                     "bundle lists"),
}
CHAT_SETTINGS = dict(
    SAMPLING_SETTINGS, **OPENING_SETTINGS,
    overflow=(str, "when the context is full: error (default) refuses the message; shift drops the oldest turns and "
                   "prints a note"),
    adapter=(str, "name of a LoRA adapter in the bundle; default: none"))
GENERATE_SETTINGS = dict(
    CHAT_SETTINGS, overflow=(str, "when the context is full: stop (default); error refuses a request that does not "
                                  "fit; shift drops the oldest tokens and continues"),
    ignore_eos=(bool, "continue after the end-of-text token"),
    lookup=(bool, "guess tokens from repetitions in the text, with the same answer; default true"))


class Form(NamedTuple):
    """What a text must be: valid for a JSON schema (`json`), matched by a regular expression (`regex`), one of a
    grammar's (`grammar`: GBNF, or llguidance's language), or one of a list (`choice`)."""
    kind: str
    value: Any


class _GenerateOptions(NamedTuple):
    max_new_tokens: int = 128
    sampling: Sampling = Sampling()
    stops: Sequence[str] = ()  # the text ends before the first of these strings
    ignore_eos: bool = False  # continue after an end-of-text token
    overflow: str = "stop"  # when the context is full: `stop`, `error` or `shift`
    json_schema: Any = None  # the text is JSON that is valid for this schema
    tools: Any = None  # the text is a call of one of these tools, a list as OpenAI's API has it
    regex: Optional[str] = None  # the whole text matches this regular expression
    grammar: Optional[str] = None  # the text is one of this grammar, in GBNF
    lookup: bool = True  # guess tokens from repetitions in the text; the answer is the same
    top: Optional[int] = None  # a TokenLogprobs with this many likeliest ids follows each token
    adapter: Optional[str] = None  # name of a LoRA adapter in the bundle


class GenerateOptions(_GenerateOptions):
    """What a generation is asked for. Raise MerinoError for a value that no model and prompt allow."""
    __slots__ = ()

    def __new__(cls, *values: Any, **named: Any) -> "GenerateOptions":
        self = super().__new__(cls, *values, **named)
        if self.overflow not in OVERFLOWS:
            raise MerinoError(f"overflow is {self.overflow!r}, allowed: {', '.join(OVERFLOWS)}.")
        if not _is_integer(self.max_new_tokens) or self.max_new_tokens < 1:
            raise MerinoError(f"{self.max_new_tokens!r} new tokens were requested, allowed: an integer, 1 or more.")
        if self.top is not None and not (_is_integer(self.top) and self.top >= 0):
            raise MerinoError(f"top is {self.top!r}, allowed: an integer, 0 or more, or none.")
        check_sampling(self.sampling)
        if not all(isinstance(text, (str, type(None))) for text in (self.regex, self.grammar)):
            raise MerinoError(f"regex is {self.regex!r:.80} and grammar is {self.grammar!r:.80}, allowed are strings.")
        if len(self.constraints) > 1:
            raise MerinoError(f"{' and '.join(self.constraints)} were given: a text follows one of them. Leave "
                              "one out.")
        if self.ignore_eos and self.constraints:
            raise MerinoError(f"the text ends where {self.constraints[0]} says. Leave out ignore_eos, or that.")
        return self

    @property
    def constraints(self) -> List[str]:
        """Return the names of the fields that constrain the text."""
        return [name for name in ("json_schema", "tools", "regex", "grammar") if getattr(self, name) is not None]


def check_sampling(sampling: Sampling) -> None:
    """Raise one MerinoError that names all values out of range."""
    if not isinstance(sampling, Sampling):
        raise MerinoError(f"sampling is {sampling!r:.80}, allowed is a Sampling, as Sampling(temperature=0.5).")

    pairs = sampling.logit_bias
    if not (isinstance(pairs, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2
                                                     for pair in pairs)):
        raise MerinoError(f"logit_bias is {pairs!r:.80}, allowed: pairs of a token id and what is added to its logit.")
    wrong = []
    for name, value in sampling._asdict().items():
        low, high = RANGES.get(name) or INTEGERS[name]
        values = {"logit_bias": [bias for _, bias in sampling.logit_bias], "seed": [value] * (value is not None)}
        good = all(isinstance(number, (int, float)) and not isinstance(number, bool) and low <= number <= high
                   for number in values.get(name, [value]))
        if not good or name == "top_p" and not value or name in INTEGERS and isinstance(value, float):
            allowed = f"an integer, {low} to {high}" if name in INTEGERS else f"{low:g} to {high:g}"
            allowed = f"above {low:g}, up to {high:g} (off)" if name == "top_p" else allowed
            wrong.append(f"{name} is {value!r}, allowed: {allowed}")
    if any(not _is_integer(token_id) or token_id < 0 for token_id, _ in sampling.logit_bias):
        wrong.append(f"logit_bias is {sampling.logit_bias!r:.80}, allowed: token ids of 0 or more")
    if wrong:
        raise MerinoError(f"these sampling options are out of range: {'; '.join(wrong)}. Change or omit them.")


def settings_help(known: Mapping[str, Tuple[type, str]]) -> str:
    return "another setting, repeat for more: " + "; ".join(f"{name} ({text})" for name, (_, text) in known.items())


def read_settings(words: Sequence[str], known: Mapping[str, Tuple[type, str]]) -> Dict[str, Any]:
    """["top_k=3", "ignore_eos=true"] -> {"top_k": 3, "ignore_eos": True}. Raise MerinoError for an unknown name or a
    value of another type."""
    settings: Dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise MerinoError(f"--set {word:.80} is not known: give NAME=VALUE, with one of "
                              f"{', '.join(sorted(known))}.")
        kind = known[name][0]
        try:
            if not value:
                raise ValueError
            settings[name] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except (KeyError, ValueError):
            allowed = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[kind]
            raise MerinoError(f"--set {word:.80}: {name} is {value!r:.80}, allowed: {allowed}.") from None
    return settings


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
