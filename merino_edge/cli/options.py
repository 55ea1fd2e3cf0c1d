"""Options that several commands share: one spelling and one help text each; a budget's options come from its table."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from merino_edge.design.budgets import BUDGETS_BY_NAME

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Device = Annotated[str, typer.Option(help="a board's id, `host`, or the path of a profile")]
Seed = Annotated[int, typer.Option(help="seed of all randomness")]
Context = Annotated[int | None, typer.Option(help="tokens, prompt included; default: the board's")]
Prompt = Annotated[int | None, typer.Option(help="its tokens; default: half the context, at most 512")]


def with_budgets(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option per budget in place of its parameter `limits`, a mapping of those that are given."""
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(
            budget.name, inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[float | None, typer.Option(budget.option, help=budget.help)],
        )
        for budget in BUDGETS_BY_NAME.values()
    ]  # fmt: skip
    names = [option.name for option in options]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        limits = {name: limit for name in names if (limit := given.pop(name)) is not None}
        command(limits=limits, **given)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += options if parameter.name == "limits" else [own]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
