"""The tests that llama.cpp and vLLM have for their own servers, against ours.

llama.cpp's tests run unchanged, from the sdist of llama-cpp-python. vLLM's need vLLM itself, so their calls are
repeated here under the names of the tests. Tables name what does not pass, with the reason.
"""

import contextlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from functools import partial

import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
pytest.importorskip("requests")

from chat_bundle import make_bundle  # noqa: E402
from processes import sdist  # noqa: E402
from served import ROOT, Server  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

FILES = ("basic", "chat_completion", "compat_oai_responses", "completion", "ctx_shift", "ignore_eos", "metrics",
         "security", "tokenize", "tool_call")  # fmt: skip
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
# llama-server's command line -> ours. Only what a test of these files needs; the rest has no counterpart.
PROGRAM = """
import os, sys
sys.path.insert(0, os.environ["RUNTIME"])
from merino_bench.__main__ import main
given = dict(zip(sys.argv[1:], sys.argv[2:]))
slots = int(given.get("--parallel", 4))
needed = int(given.get("--ctx-size", 512)) // slots
context = min([each for each in map(int, os.environ["CONTEXTS"].split()) if each >= needed] or [4096])
command = [os.path.join(os.environ["BUNDLES"], str(context)), "--port", given["--port"], "--slots", str(slots),
           "--set=threads=1", "--set=cache_mb=0"]
if "--api-key" in given:
    with open("keys", "w") as file:
        file.write(given["--api-key"])
    command += ["--api-key-file", "keys"]
sys.exit(main(["serve", *command]))
"""
# Their fixture starts every preset to download its model.
NOTHING = "import utils\nutils.ServerPreset.load_all = staticmethod(lambda: None)\n"
# The functions of llama.cpp's tests that fail, by reason. If another one fails, or all cases of one of these pass, the
# test fails.
OWN_PATHS = "a path of llama.cpp alone: /completion, /tokenize, /slots, /props, /apply-template and so on"
OWN_OPTIONS = "an option of llama-server's command line that has no counterpart"
OWN_FIELDS = "a field of llama.cpp alone: __verbose, prompt_progress, a fingerprint that begins with b"
OWN_MODEL = "the name, the texts or the template of their model"
AS_OPENAI = "we follow OpenAI: an unknown model is refused, the first chunk has an empty text, types of errors"
DIFFERENT = {
    OWN_PATHS: """basic::test_server_props basic::test_server_slots basic::test_load_split_model
        chat_completion::test_apply_chat_template chat_completion::test_logit_bias
        chat_completion::test_chat_completions_token_count completion::test_completion
        completion::test_completion_stream
        completion::test_completion_stream_vs_non_stream completion::test_consistent_result_same_seed
        completion::test_different_result_different_seed completion::test_consistent_result_different_batch_size
        completion::test_nocache_long_input_prompt completion::test_json_prompt_no_mtmd
        completion::test_completion_with_tokens_input completion::test_completion_parallel_slots
        completion::test_completion_unified completion::test_completion_response_fields completion::test_n_probs
        completion::test_n_probs_stream completion::test_n_probs_post_sampling
        completion::test_n_probs_post_backend_sampling completion::test_logit_bias completion::test_cancel_request
        completion::test_completion_prompt_cache ctx_shift::test_ctx_shift_enabled
        ctx_shift::test_ctx_shift_disabled_short_prompt ctx_shift::test_ctx_shift_disabled_long_prompt
        ignore_eos::test_ignore_eos_populates_logit_bias ignore_eos::test_ignore_eos_false_no_logit_bias
        metrics::test_metrics_prompt_processed_and_cached metrics::test_metrics_predicted_total_matches_requests
        metrics::test_metrics_generation_rate_excludes_first_token metrics::test_metrics_timings_are_finite
        metrics::test_metrics_timings_on_prompt_progress metrics::test_metrics_slots_idle_after_completion
        metrics::test_metrics_embedding_prompt_is_counted security::test_correct_api_key
        security::test_correct_api_key_anthropic_header tokenize::test_tokenize_detokenize
        tokenize::test_tokenize_with_bos tokenize::test_tokenize_with_pieces""",
    OWN_OPTIONS: """basic::test_server_multiple_addresses basic::test_no_ui basic::test_server_model_aliases_and_tags
        metrics::test_metrics_disabled metrics::test_metrics_prometheus_format security::test_cors_options
        security::test_cors_origins_localhost_reflects security::test_cors_origins_localhost_rejects
        security::test_cors_origins_defaults_to_localhost_with_tools_enabled
        security::test_cors_proxy_only_forwards_explicit_proxy_headers security::test_local_media_file
        security::test_access_static_assets_without_api_key""",
    OWN_FIELDS: """chat_completion::test_chat_completion chat_completion::test_chat_template
        chat_completion::test_chat_template_assistant_prefill
        chat_completion::test_chat_template_continue_final_message_vllm_compat chat_completion::test_return_progress
        chat_completion::test_verbose_debug compat_oai_responses::test_responses_stream_with_llama_telemetry""",
    OWN_MODEL: """basic::test_server_models chat_completion::test_chat_completion_cached_tokens""",
    AS_OPENAI: """chat_completion::test_chat_completion_stream chat_completion::test_chat_completion_with_openai_library
        chat_completion::test_invalid_chat_completion_req chat_completion::test_chat_completion_with_timings_per_token
        chat_completion::test_logprobs chat_completion::test_logprobs_stream
        chat_completion::test_context_size_exceeded chat_completion::test_context_size_exceeded_stream
        compat_oai_responses::test_responses_with_openai_library
        compat_oai_responses::test_responses_stream_with_openai_library
        completion::test_completion_with_openai_library completion::test_completion_stream_with_openai_library
        security::test_incorrect_api_key security::test_openai_library_correct_api_key
        tool_call::test_completion_without_tool_call_fast""",
}
# One of its cases accepts any list, samples without a seed, and looks for a character that `[]` does not have.
BY_CHANCE = {"chat_completion::test_completion_with_response_format"}


def functions_of(report):
    """The functions of a report, each with the outcomes of its cases."""
    functions = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("classname").partition("test_")[2] + "::" + case.get("name").partition("[")[0]
        failed = any(part.tag in ("failure", "error") for part in case)
        functions.setdefault(name, []).append("failed" if failed else "passed")
    return functions


def test_llama_cpps_tests_of_its_server(decoder, tmp_path):
    folder = sdist("llama-cpp-python==0.3.36", tmp_path, "/tools/server/tests/") / "vendor/llama.cpp/tools/server/tests"
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    (folder / "wget.py").write_text("")  # a package that is not needed
    (folder / "nothing.py").write_text(NOTHING)
    (tmp_path / "bundles").mkdir()
    for context in CONTEXTS:
        make_bundle(tmp_path / "bundles" / str(context), decoder, context=context)
    environment = dict(os.environ, LLAMA_SERVER_BIN_PATH=str(program), BUNDLES=str(tmp_path / "bundles"), PORT="18080",
                       RUNTIME=os.path.join(ROOT, "runtime"), CONTEXTS=" ".join(map(str, CONTEXTS)), PYTHONPATH=".")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "nothing", "-p", "no:cacheprovider",
               "--junitxml", report, *(f"unit/test_{name}.py" for name in FILES)]  # fmt: skip
    subprocess.run(command, cwd=folder, env=environment, timeout=3000, capture_output=True)
    functions = functions_of(report)
    assert len(functions) > 60
    expected = {name for names in DIFFERENT.values() for name in names.split()}
    assert {name for name, cases in functions.items() if "failed" in cases} - BY_CHANCE == expected


MESSAGES = [{"role": "system", "content": "you are a helpful assistant"}, {"role": "user", "content": "what is 1+1?"}]
SUM = {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "options": {"$ref": "#/$defs/More"}},
    "required": ["unit"], "$defs": {"More": {"type": "object", "properties": {"days": {"type": "integer"}}}}}}}]
NAMED = {"type": "function", "function": {"name": "weather"}}
BEGIN = [0, 0, 0, 0, 0]


def refused(call, **body):
    with contextlib.suppress(openai.BadRequestError):
        call(**body)
        return False
    return True


def streamed(chunks):
    """(text, reasons of all chunks) of a stream of chat completions or completions with one answer."""
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    texts = [choice.text if hasattr(choice, "text") else choice.delta.content for choice in choices]
    return "".join(text or "" for text in texts), [choice.finish_reason for choice in choices]


def calls_weather(choice):
    (call,) = choice.message.tool_calls
    return call.function.name == "weather" and "unit" in json.loads(call.function.arguments)


def same_as_its_stream(call, text_of):
    text, reasons = streamed(call(stream=True))
    whole = call().choices[0]
    return text == text_of(whole) and [reason for reason in reasons if reason] == [whole.finish_reason]


def usage_in_the_last_chunk_alone(call):
    without = [chunk.usage for chunk in call(stream=True, stream_options={"include_usage": False})]
    *usages, last = [chunk.usage for chunk in call(stream=True, stream_options={"include_usage": True})]
    return not any([*without, *usages]) and last.total_tokens == last.prompt_tokens + last.completion_tokens


def usage_in_every_chunk(call):
    options = {"include_usage": True, "continuous_usage_stats": True}
    return all(chunk.usage for chunk in call(stream=True, stream_options=options))


# Name of vLLM's test -> whether our answer is what it wants: (chat, texts, responses), each the client's `create`.
VLLMS = {
    "no_logprobs_chat": lambda chat, *_: chat(logprobs=False).choices[0].logprobs is None,
    "zero_logprobs_chat": lambda chat, *_: chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == [],
    "some_logprobs_chat": lambda chat, *_: len(
        chat(logprobs=True, top_logprobs=5).choices[0].logprobs.content[0].top_logprobs) == 5,
    "too_many_chat_logprobs": lambda chat, *_: refused(chat, logprobs=True, top_logprobs=21, stream=True) and refused(
        chat, logprobs=True, top_logprobs=30) and chat(),
    "prompt_logprobs_chat": lambda chat, *_: chat(extra_body={"prompt_logprobs": 1}).prompt_logprobs,
    "single_chat_session": lambda chat, *_: chat().usage.completion_tokens == 5,
    "chat_streaming": lambda chat, *_: same_as_its_stream(chat, lambda choice: choice.message.content),
    "chat_completion_stream_options": lambda chat, *_: usage_in_the_last_chunk_alone(chat),
    "stream_options_without_stream": lambda chat, *_: refused(chat, stream_options={"include_usage": True}),
    "continuous_usage_stats": lambda chat, *_: usage_in_every_chunk(chat),
    "structured_outputs_choice_chat": lambda chat, *_: chat(
        extra_body={"structured_outputs": {"choice": ["Python", "Rust"]}}).choices[0].message.content in (
            "Python", "Rust"),
    "structured_outputs_type_error": lambda chat, *_: refused(chat, extra_body={"structured_outputs": {"regex": {}}}),
    "response_format_json_object": lambda chat, *_: isinstance(json.loads(chat(
        response_format={"type": "json_object"}, max_completion_tokens=900, seed=2).choices[0].message.content), dict),
    "response_format_json_schema": lambda chat, *_: set(json.loads(chat(max_completion_tokens=90, response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": SUM}}).choices[0].message.content)) == {"result"},
    "response_format_text": lambda chat, *_: chat(response_format={"type": "text"}).choices,
    "extra_fields_allowed": lambda chat, *_: chat(messages=[dict(MESSAGES[1], extra_field="0")]).choices,
    "complex_message_content": lambda chat, *_: chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "what is 1+1?"}]}]).choices,
    "custom_role": lambda chat, *_: chat(
        messages=[{"role": "my-custom-role", "content": "x"}]).choices[0].message.content == chat(
        messages=[{"role": "my-custom-role", "content": [{"type": "text", "text": "x"}]}]).choices[0].message.content,
    "long_seed": lambda chat, *_: refused(chat, seed=-2 ** 63 - 1) and refused(chat, seed=2 ** 63),
    "chat_completion_n_parameter": lambda chat, *_: [choice.index for choice in chat(n=3).choices] == [0, 1, 2],
    "chat_completion_n_parameter_streaming": lambda chat, *_: {
        choice.index for chunk in chat(n=2, stream=True) for choice in chunk.choices} == {0, 1},
    "function_tool_use": lambda chat, *_: all(calls_weather(chat(
        tools=TOOLS, tool_choice=choice, max_completion_tokens=200).choices[0]) for choice in ("required", NAMED)),
    "named_tool_use": lambda chat, *_: chat(tools=TOOLS, tool_choice=NAMED, max_completion_tokens=200).choices[
        0].message.content in (None, ""),
    "inconsistent_tool_choice_and_tools": lambda chat, *_: refused(chat, tool_choice=NAMED) and refused(
        chat, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "nondefined"}}),
    "empty_tool_choice": lambda chat, *_: refused(chat, tools=TOOLS, tool_choice={}),
    "max_tokens_with_tool_choice_required": lambda chat, *_: [(choice.finish_reason, choice.message.content or "")
        for choice in chat(tools=TOOLS, tool_choice="required", max_completion_tokens=1).choices] == [("length", "")],
    "single_completion": lambda _, texts, __: texts().usage.completion_tokens == 5 and texts(prompt=BEGIN).choices,
    "no_logprobs": lambda _, texts, __: texts(prompt=BEGIN, logprobs=None).choices[0].logprobs is None,
    "zero_logprobs": lambda _, texts, __: len(
        texts(prompt=BEGIN, logprobs=0).choices[0].logprobs.top_logprobs[0]) == 1,
    "some_logprobs": lambda _, texts, __: 5 <= len(
        texts(prompt=BEGIN, logprobs=5).choices[0].logprobs.top_logprobs[0]) <= 6,
    "too_many_completion_logprobs": lambda _, texts, __: refused(texts, logprobs=21) and texts(),
    "completion_streaming": lambda _, texts, __: same_as_its_stream(texts, lambda choice: choice.text),
    "parallel_no_streaming": lambda _, texts, __: len({choice.text for choice in texts(
        n=3, seed=42, temperature=9, max_tokens=50).choices}) == 3,
    "completion_stream_options": lambda _, texts, __: usage_in_the_last_chunk_alone(texts),
    "batch_completions": lambda _, texts, __: len(
        {choice.text for prompts in (["Hello"] * 2, [BEGIN] * 2) for choice in texts(prompt=prompts).choices}) <= 2,
    "beam_search": lambda _, texts, __: texts(n=2, extra_body={"use_beam_search": True}),
    "echo_logprob_completion": lambda _, texts, __: all(
        logprobs.token_logprobs[0] is None and len(logprobs.tokens) > 5 for logprobs in (texts(
            prompt=prompt, echo=True, logprobs=1).choices[0].logprobs for prompt in ("Hello, my name is", BEGIN))),
    "invalid_json_schema": lambda _, texts, __: refused(
        texts, extra_body={"guided_json": {"type": "object", "properties": {"foo": "bar"}}}),
    "invalid_grammar": lambda _, texts, __: refused(texts, extra_body={"structured_outputs": {"grammar": "root ::="}}),
    "truncation": lambda _, texts, __: texts(prompt=BEGIN, extra_body={"truncate_prompt_tokens": 4}),
    "responses_basic": lambda _, __, responses: responses(reasoning={"effort": "none"}).status == "incomplete",
    "responses_max_tokens": lambda _, __, responses: responses().incomplete_details.reason == "max_output_tokens",
    "responses_history": lambda _, __, responses: responses(input=[
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "z"}]}]).output,
    "responses_streaming_output_consistency": lambda _, __, responses: (lambda events: "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    ) == events[-1].response.output_text)(list(responses(stream=True))),
    "responses_extra_sampling_params": lambda _, __, responses: responses(
        extra_body={"top_k": 40, "repetition_penalty": 1.2, "seed": 42}).output[0].content[0].text,
    "responses_streaming_logprobs": lambda _, __, responses: all(event.logprobs for event in responses(
        stream=True, top_logprobs=3, include=["message.output_text.logprobs"])
        if event.type == "response.output_text.delta"),
}  # fmt: skip
# What differs from vLLM, and why.
NOT_AS_VLLM = {
    "prompt_logprobs_chat": "a field of vLLM alone; /v1/completions with echo has the prompt's log-probabilities",
    "stream_options_without_stream": "options of a stream mean nothing without one, so they are ignored",
    "continuous_usage_stats": "a field of vLLM alone; timings_per_token counts in each chunk, as in llama.cpp",
    "empty_tool_choice": "{} is read as no choice",
    "beam_search": "refused by name",
    "responses_streaming_logprobs": "refused: /v1/chat/completions has log-probabilities",
    "truncation": "refused by name: what is cut from a prompt is the client's choice",
}


@pytest.fixture(scope="module")
def creates(decoder, tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "chat", decoder, dialect="fused", context=1024)
    with Server(folder, options=["--set=cache_mb=0"]) as server, \
            openai.OpenAI(base_url=server.url + "/v1", api_key="dummy", max_retries=0) as client:
        usual = {"model": "", "temperature": 0}
        yield (partial(client.chat.completions.create, messages=MESSAGES, max_completion_tokens=5, **usual),
               partial(client.completions.create, prompt="Hello, my name is", max_tokens=5, **usual),
               partial(client.responses.create, input="What is 123 * 456?", max_output_tokens=5, **usual))


@pytest.mark.parametrize("name", VLLMS)
def test_vllms_cases(creates, name):
    try:
        passes = bool(VLLMS[name](*creates))
    except openai.BadRequestError:
        passes = False
    except AttributeError:  # a field that only vLLM has
        passes = False
    assert passes == (name not in NOT_AS_VLLM)
