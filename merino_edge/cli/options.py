"""Options that several commands share: one spelling and one help text each; a budget's options come from its table."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from merino_edge.design.budgets import BUDGETS_BY_NAME

BUDGETS, CHOICES, PAPER = "Budgets", "Choices of the search", "The paper's search"  # groups of options in a help
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
BOARD = "a board's name, a profile's file, `host` for this machine, or USER@HOST, which is asked over ssh"
Board = Annotated[str, typer.Option("--board", metavar="BOARD", help=BOARD)]
Backend = Annotated[
    str | None, typer.Option(help="backend: onnxruntime (CPU) or tensorrt (GPU of a Jetson); default: the board's own")
]
HOST = "[USER@]HOST[:PORT]"
SSH = "run on this board instead of on this machine"
Ssh = Annotated[str | None, typer.Option(metavar=HOST, help=SSH)]
ROOT = "with --ssh: folder of releases on the board, as for `flash --root`"
Root = Annotated[str | None, typer.Option(metavar="DIR", help=ROOT)]
Context = Annotated[int | None, typer.Option(help="context length in tokens, prompt included; default: the board's")]
KV = "KV cache format: fp32, int8 or int4 (fused dialect, onnxruntime 1.27 or later)"
Kv = Annotated[str | None, typer.Option(help=KV)]
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


def with_budgets(command: Callable[..., None], more: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Return the command with the options of budgets instead of its parameter `limits`, which maps the given ones.

    A budget on which boards have a limit has an option of its own; the others share `--budget`. more: help by name of
    further values of `--budget`.
    """
    own = [budget for budget in BUDGETS_BY_NAME.values() if budget.default]
    rare = [budget for budget in BUDGETS_BY_NAME.values() if not budget.default]
    others = {**{budget.name: f"{budget.label}, in {budget.unit}" for budget in rare}, **(more or {})}
    listed = "; ".join(f"{name.replace('_', '-')} ({words})" for name, words in others.items())
    options: dict[str, Any] = {
        budget.name: Annotated[float | None, typer.Option(budget.option, help=budget.help, rich_help_panel=BUDGETS)]
        for budget in own
    }
    options["budget"] = Annotated[list[str] | None, typer.Option(
        metavar="NAME=VALUE", help=f"another budget, repeat for more: {listed}", rich_help_panel=BUDGETS
    )]  # fmt: skip
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        limits = {budget.name: values.pop(budget.name) for budget in own}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        command(limits=limits | parse_budgets(values.pop("budget") or (), list(others)), **values)

    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += added if parameter.name == "limits" else [keyword]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def parse_budgets(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """["file-mb=3"] -> {"file_mb": 3.0}. Raise typer.BadParameter for an unknown name or a bad number."""
    limits: dict[str, float] = {}
    for text in given:
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
