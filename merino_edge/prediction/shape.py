"""The shape of an inference: weight format, context and prompt. All costs are predicted for one shape."""

from dataclasses import dataclass

from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

LONGEST_DEFAULT_PROMPT = 512
MOST_CONTEXT = 131_072


@dataclass(frozen=True)
class InferenceShape:
    """`precision`: the weight format. `context`: tokens in the full KV cache. `prompt`: tokens of the prefill.
    `kv`: the format of the cache; None: that of the activations."""

    precision: str
    context: int
    prompt: int
    kv: str | None = None


def lengths_words(context: int, prompt: int, kv: str | None = None) -> str:
    """Return the shape in words, without the weight format."""
    return f"context {context}, prompt {prompt} tokens" + (f", a cache of {kv}" if kv else "")


def default_prompt(context: int) -> int:
    """Return the default number of prompt tokens: half the context, at most 512."""
    return min(LONGEST_DEFAULT_PROMPT, max(1, context // 2))


def default_lengths(profile: DeviceProfile, context: int | None, prompt: int | None) -> tuple[int, int]:
    """Return (context, prompt) in tokens; by default the board's context and `default_prompt`."""
    longest = profile.budget.context if context is None else context
    return longest, default_prompt(longest) if prompt is None else prompt


def check_lengths(context: int | None, prompt: int | None) -> None:
    """Raise MerinoError for lengths that no search, verdict or prediction takes. None: not given yet."""
    if context is not None and not 2 <= context <= MOST_CONTEXT:
        raise MerinoError(f"--context {context} is not allowed: choose 2 to {MOST_CONTEXT} tokens")
    longest = MOST_CONTEXT if context is None else context
    if prompt is not None and not 1 <= prompt <= longest:
        raise MerinoError(f"--prompt {prompt} is not allowed: choose 1 to the context, {longest} tokens")
