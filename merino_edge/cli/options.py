"""Options that several commands share: one spelling and one help text each."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Device = Annotated[str, typer.Option(help="a board's id, `host`, or the path of a profile")]
Seed = Annotated[int, typer.Option(help="seed of all randomness")]
DecodeMs = Annotated[float | None, typer.Option(help="budget: ms per token, the cache full")]
PrefillMs = Annotated[float | None, typer.Option(help="budget: ms for the prompt")]
MemoryMb = Annotated[float | None, typer.Option(help="budget: MB (2^20) in use; default: the board's")]
FlopsG = Annotated[float | None, typer.Option(help="budget: GFLOPs at 1024 tokens, without the LM head")]
ParamsM = Annotated[float | None, typer.Option(help="budget: million parameters")]
FileMb = Annotated[float | None, typer.Option(help="budget: MB (2^20) of the bundle's folder")]
JPerToken = Annotated[float | None, typer.Option(help="budget: joules per token, where the profile knows watts")]
Context = Annotated[int | None, typer.Option(help="tokens, prompt included; default: the board's")]
Prompt = Annotated[int | None, typer.Option(help="its tokens; default: half the context, at most 512")]
