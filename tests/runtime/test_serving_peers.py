"""llama.cpp's own tests of its server, unmodified, against ours. They come from the sdist of llama-cpp-python when the
test runs. `DIFFERENT` names what does not pass, and why. vLLM's cases are in test_serving_openai.py, ported."""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
pytest.importorskip("requests")

from chat_bundle import make_bundle  # noqa: E402
from served import ROOT  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
SDIST = "llama-cpp-python==0.3.36"
FILES = ("basic", "chat_completion", "compat_oai_responses", "completion", "ctx_shift", "ignore_eos", "metrics",
         "security", "tokenize", "tool_call")
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
           "-t", "1", "--cache-mb", "0"]
if "--api-key" in given:
    with open("keys", "w") as file:
        file.write(given["--api-key"])
    command += ["--api-key-file", "keys"]
sys.exit(main(["serve", *command]))
"""
# Their fixture starts every preset to download its model, and their list of packages has two that are not needed.
NOTHING = "import utils\nutils.ServerPreset.load_all = staticmethod(lambda: None)\n"


@pytest.fixture(scope="module")
def suite(decoder, tmp_path_factory):
    """The folder of the tests, with a bundle for each context, and the environment in which they run."""
    folder = tmp_path_factory.mktemp("llama")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                "--dest", folder, SDIST]
    if subprocess.run(download, timeout=900, capture_output=True).returncode:
        pytest.skip("the package index is out of reach")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        tests = [member for member in sdist if "/tools/server/tests/" in member.name]
        sdist.extractall(folder, tests, filter="data")
    (found,) = folder.glob("*/vendor/llama.cpp/tools/server/tests")
    program = folder / "llama-server"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    (found / "wget.py").write_text("")
    (found / "nothing.py").write_text(NOTHING)
    (folder / "bundles").mkdir()
    for context in CONTEXTS:
        make_bundle(folder / "bundles" / str(context), decoder, context=context)
    return found, dict(os.environ, LLAMA_SERVER_BIN_PATH=str(program), BUNDLES=str(folder / "bundles"), PORT="18080",
                       RUNTIME=os.path.join(ROOT, "runtime"), CONTEXTS=" ".join(map(str, CONTEXTS)))


# What fails, by function, and why. A case of another function that fails is an error of ours, and so is a function here
# all of whose cases pass.
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
    "a GBNF grammar is refused by name": "chat_completion::test_completion_with_grammar",
}


def functions_of(report):
    """The functions of a report, each with the outcomes of its cases."""
    functions = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("classname").partition("test_")[2] + "::" + case.get("name").partition("[")[0]
        failed = any(part.tag in ("failure", "error") for part in case)
        functions.setdefault(name, []).append("failed" if failed else "passed")
    return functions


@pytest.mark.skipif("MERINO_LLAMA_CPP_TESTS" not in os.environ, reason="MERINO_LLAMA_CPP_TESTS is not set: any value")
def test_llama_cpps_tests_of_its_server(suite):
    folder, environment = suite
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "nothing", "-p", "no:cacheprovider",
               "--junitxml", report, *(f"unit/test_{name}.py" for name in FILES)]
    subprocess.run(command, cwd=folder, env=dict(environment, PYTHONPATH="."), timeout=3000, capture_output=True)
    functions = functions_of(report)
    expected = {name for names in DIFFERENT.values() for name in names.split()}
    assert len(functions) > 60
    assert {name for name, cases in functions.items() if "failed" in cases} == expected
