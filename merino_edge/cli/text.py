"""The commands that give text: `generate` and `chat`, on this machine or on a board."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from merino_edge.cli.options import AcceptNew, Json, PrefillThreads, Root, Ssh, Threads, with_sampling
from merino_runtime.sampling import Sampling, options_of

Schema = Annotated[
    Path | None, typer.Option("--json-schema", help="constrain the text to JSON valid for the schema in this file")
]  # fmt: skip


@with_sampling
def generate(
    bundle: Annotated[str, typer.Argument(help="bundle folder, or `embedded`")],
    prompt: Annotated[
        str | None, typer.Argument(help="prompt; `-`, or none after a pipe: read from stdin")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("-n", help="maximum number of new tokens")] = 128,
    sampling: Sampling = Sampling(),  # noqa: B008, by the decorator
    stop: Annotated[list[str] | None, typer.Option(help="stop string, not printed; repeat for more")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="continue after the end-of-text token")] = False,
    allow_slow: Annotated[bool, typer.Option("--allow-slow", help="run a format that is slow on this CPU")] = False,
    overflow: Annotated[
        Literal["stop", "error", "shift"], typer.Option(help="context full: stop, fail, or shift out old tokens")
    ] = "stop",
    threads: Threads = None,
    prefill_threads: PrefillThreads = None,
    json_schema: Schema = None,
    tools: Annotated[
        Path | None, typer.Option(help="constrain the text to a call of one of this file's tools (OpenAI's list)")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="file of the prompt's KV cache: read if it exists, else written")
    ] = None,
    ssh: Ssh = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Generate text from a bundle with the board's runtime, on this machine or on a board."""
    from merino_edge.cli.over_ssh import refuse_remote
    from merino_edge.families.names import bundle_path
    from merino_runtime.commands import run_generate, stdin_is_terminal
    from merino_runtime.sampling import check_new_tokens

    if prompt is None and stdin_is_terminal():
        raise typer.BadParameter("give a text, or `-` to read it from stdin", param_hint="PROMPT")
    check_new_tokens(max_new_tokens)
    if ssh is not None:
        from merino_edge.cli.over_ssh import generate_there, refuse_local, words_of

        refuse_local(cache=cache, json_schema=json_schema, tools=tools)
        options = words_of(
            n=max_new_tokens, **options_of(sampling), overflow=overflow, ignore_eos=ignore_eos,
            allow_slow=allow_slow, t=threads, prefill_threads=prefill_threads, json=as_json,
        ) + [f"--stop={each}" for each in stop or ()]  # fmt: skip
        raise typer.Exit(generate_there(ssh, accept_new, root, bundle, prompt, options))
    refuse_remote(accept_new=accept_new, root=root)
    run_generate(
        bundle_path(bundle), prompt, max_new_tokens, sampling, stop or (), threads, as_json, ignore_eos,
        allow_slow=allow_slow, overflow=overflow, prefill_threads=prefill_threads,
        cache_path=str(cache) if cache else None, schema_path=str(json_schema) if json_schema else None,
        tools_path=str(tools) if tools else None,
    )  # fmt: skip


@with_sampling
def chat(
    bundle: Annotated[str, typer.Argument(help="bundle folder")],
    system: Annotated[str | None, typer.Option(help="system message; default: the chat template's")] = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="disable thinking, where the chat template supports it")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("-n", help="maximum number of tokens per answer; default: what the context holds")
    ] = None,
    sampling: Sampling = Sampling(),  # noqa: B008, by the decorator
    allow_slow: Annotated[bool, typer.Option("--allow-slow", help="run a format that is slow on this CPU")] = False,
    overflow: Annotated[
        Literal["error", "shift"], typer.Option(help="context full: refuse the message, or shift out the oldest turns")
    ] = "error",
    json_schema: Schema = None,
    threads: Threads = None,
    prefill_threads: PrefillThreads = None,
    ssh: Ssh = None,
    accept_new: AcceptNew = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Chat with an instruction-tuned model, on this machine or on a board. From a pipe, each line is a turn."""
    from merino_edge.cli.over_ssh import refuse_remote
    from merino_edge.families.names import bundle_path
    from merino_runtime.commands import run_chat
    from merino_runtime.sampling import check_new_tokens

    if max_new_tokens is not None:
        check_new_tokens(max_new_tokens)
    if ssh is not None:
        from merino_edge.cli.over_ssh import chat_there, refuse_local, words_of

        refuse_local(json_schema=json_schema)
        options = words_of(
            system=system, no_think=no_think, n=max_new_tokens, **options_of(sampling), allow_slow=allow_slow,
            overflow=overflow, t=threads, prefill_threads=prefill_threads,
        )  # fmt: skip
        raise typer.Exit(chat_there(ssh, accept_new, root, bundle, options, as_json))
    refuse_remote(accept_new=accept_new, root=root)
    code = run_chat(
        bundle_path(bundle), as_json, threads=threads, prefill_threads=prefill_threads, allow_slow=allow_slow,
        system=system, no_think=no_think, max_new_tokens=max_new_tokens,
        sampling=sampling, overflow=overflow, schema_path=str(json_schema) if json_schema else None,
    )  # fmt: skip
    raise typer.Exit(code)
