"""Options that several commands share: one spelling and one help text each; a budget's options come from its table."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import typer

from merino_edge.design.budgets import BUDGETS_BY_NAME

BUDGETS, CHOICES, PAPER = "Budgets", "Choices of the search", "The paper's search"  # groups of options in a help
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
BOARD = (
    "a board's name, a profile's file, `host` for this machine, or USER@HOST, which is asked over ssh."
    " BOARD:onnxruntime is a Jetson's CPU instead of its GPU"
)
Board = Annotated[str, typer.Option("--board", metavar="BOARD", help=BOARD)]
HOST = "[USER@]HOST[:PORT][/FOLDER]"
SSH = "run on this board instead of this machine; FOLDER: where it keeps its releases, such as /srv/merino"
Ssh = Annotated[str | None, typer.Option(metavar=HOST, help=SSH)]
Context = Annotated[int | None, typer.Option(help="context length in tokens, prompt included; default: the board's")]
KV = ("KV cache format: fp32, int8 or int4. Default: the design's. Without a design it is int8 if the weights are int8"
      " or int4, the dialect is fused and the model's answers stay the same; otherwise it is the activations' format")
OpenKv = Annotated[str | None, typer.Option(
    rich_help_panel=CHOICES, help="KV cache format (fp32, int8, int4), or a list to choose from; default: all",
)]  # fmt: skip
Vocab = Annotated[str | None, typer.Option(
    rich_help_panel=CHOICES, help="vocabulary size, or a list to choose from; default: 4096,8192,16384,32768,50257",
)]  # fmt: skip
Precision = Annotated[str | None, typer.Option(
    rich_help_panel=CHOICES, help="weight format, or a list to choose from; default: all that the board is fast at",
)]  # fmt: skip
Prompt = Annotated[int | None, typer.Option(help="prompt length in tokens; default: half the context, at most 512")]


def parse_choices(vocab: str | None, precision: str | None, kv: str | None) -> dict[str, Any]:
    """Return `vocabs`, `precisions` and `kvs` of a search from its options. Raise MerinoError for an unknown format."""
    from merino_edge.prediction.formats import quantized_kv

    return {
        "vocabs": integers("--vocab", vocab) if vocab is not None else (),
        "precisions": words(precision) if precision is not None else (),
        "kvs": [quantized_kv(word) for word in words(kv)] if kv is not None else None,
    }


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def integers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text}: give an integer, or several with commas between") from error


DecodeMs = Annotated[float | None, typer.Option(help=BUDGETS_BY_NAME["decode_ms"].help, rich_help_panel=BUDGETS)]
MemoryMb = Annotated[float | None, typer.Option(help=BUDGETS_BY_NAME["memory_mb"].help, rich_help_panel=BUDGETS)]
RARE_BUDGETS = {name: budget for name, budget in BUDGETS_BY_NAME.items() if not budget.default}


def budget_option(more: Mapping[str, str] | None = None) -> Any:
    """Return the option of the budgets without one of their own. more: help by name of further values."""
    texts = {name: f"{budget.label}, in {budget.unit}" for name, budget in RARE_BUDGETS.items()} | dict(more or {})
    listed = "; ".join(f"{name.replace('_', '-')} ({text})" for name, text in texts.items())
    return typer.Option(
        "--budget", metavar="NAME=VALUE", help=f"another budget, repeat for more: {listed}", rich_help_panel=BUDGETS
    )


def limits_of(
    decode_ms: float | None, memory_mb: float | None, others: Sequence[str] | None, more: Collection[str] = ()
) -> dict[str, float]:
    """Return the budgets that were given: (4, None, ["file-mb=3"]) -> {"decode_ms": 4, "file_mb": 3}. more: names
    beside the budgets'. Raise typer.BadParameter for an unknown name or a bad number."""
    own = {"decode_ms": decode_ms, "memory_mb": memory_mb}
    limits = {name: limit for name, limit in own.items() if limit is not None}
    names = [*RARE_BUDGETS, *more]
    for text in others or ():
        shown, _, value = text.partition("=")
        name = shown.replace("-", "_")
        try:
            if name not in names:
                raise ValueError
            limits[name] = float(value)
        except ValueError:
            allowed = ", ".join(name.replace("_", "-") for name in names)
            message = f"{text!r} is not allowed: give NAME=VALUE, a number for one of {allowed}"
            raise typer.BadParameter(message, param_hint="--budget") from None
    return limits


def parse_percent(option: str, text: str, allowed: str) -> float:
    """"5%" or "5" -> 0.05, below 1. Below 1 the sign is required, because 0.05 could mean two things."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    if not match or not 0 <= float(match[1]) < 100 or (not match[2] and 0 < float(match[1]) < 1):
        raise typer.BadParameter(f"{text!r} is not allowed: choose {allowed}", param_hint=option)
    return float(match[1]) / 100
