"""What is measured: lengths, names, and what a context allows."""
import pytest

from merino_bench.workload import Case, Workload, cases_for, parse_lengths
from merino_runtime.errors import MerinoError


@pytest.mark.parametrize("text, lengths", [
    ("512", (512,)), ("128,512", (128, 512)), ("512, 128,512", (512, 128)), ("0", ()), ("0,4", (4,))])
def test_lengths_are_a_comma_list(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "a", "-1", "1.5", "1,,2", "1;2"])
def test_other_lengths_are_refused_with_what_was_written(text):
    with pytest.raises(MerinoError, match="expected numbers of tokens") as refused:
        parse_lengths(text)
    assert repr(text) in str(refused.value)


def test_cases_are_prefills_then_decodes():
    cases = cases_for(Workload((32, 512), (128,)), [("a", 2048)])
    assert cases == (Case("pp32", 32, 0), Case("pp512", 512, 0), Case("tg128", 8, 128))


@pytest.mark.parametrize("context, names", [
    (2048, ["pp512", "tg128"]), (1024, ["pp512", "tg128"]), (512, ["pp256", "tg128"]), (64, ["pp32", "tg56"]),
    (9, ["pp4", "tg1"])])
def test_the_usual_lengths_shrink_with_the_context(context, names):
    assert [case.name for case in cases_for(Workload(), [("a", context)])] == names


def test_the_smallest_context_rules_so_that_rows_compare():
    assert [case.name for case in cases_for(Workload(), [("a", 2048), ("b", 256)])] == ["pp128", "tg128"]


def test_without_a_readable_bundle_the_usual_rows_are_named():
    assert [case.name for case in cases_for(Workload(), [])] == ["pp512", "tg128"]


def test_what_was_asked_for_is_never_shortened():
    contexts = [("wide", 2048), ("narrow", 64)]
    with pytest.raises(MerinoError) as refused:
        cases_for(Workload((65,), (57,)), contexts)
    message = str(refused.value)
    assert "pp65, tg57" in message and "'narrow'" in message and "-p up to 64" in message
    assert "-n up to 56" in message
    assert len(cases_for(Workload((64,), (56,)), contexts)) == 2


def test_one_asked_for_leaves_the_other_usual():
    assert [case.name for case in cases_for(Workload(prompts=(16,)), [("a", 64)])] == ["pp16", "tg56"]


@pytest.mark.parametrize("workload, words", [
    (Workload(repetitions=0), "repetitions is 0"), (Workload(threads=0), "threads is 0"),
    (Workload(seed=-1), "seed is -1"), (Workload(prompts=(-4,)), "length is -4"),
    (Workload((), ()), "nothing is left")])
def test_impossible_counts_are_refused(workload, words):
    with pytest.raises(MerinoError, match=words):
        cases_for(workload, [("a", 64)])
