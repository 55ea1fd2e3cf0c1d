"""--precision mixed: 8 bits for the matrices where they save most divergence, within limits of bytes and time."""

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_edge.export.divergence import divergence
from merino_edge.export.export import calibrate, export, export_planned
from merino_edge.export.mixed import Promotion, chosen, promotions
from merino_edge.export.plan import resolve_plan
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source

parts = st.tuples(st.integers(-3, 60), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(parts, min_size=1, max_size=7), st.integers(0, 60) | st.none(), st.integers(0, 60) | st.none())
def test_the_choice_saves_as_much_as_the_best_subset(values, most_bytes, most_ms):
    candidates = [Promotion(f"m{place}", kl / 1e4, nbytes, ms) for place, (kl, nbytes, ms) in enumerate(values)]

    def fits(subset):
        spent = sum(each.nbytes for each in subset), sum(each.ms for each in subset)
        return all(most is None or one <= most for one, most in zip(spent, (most_bytes, most_ms), strict=True))

    subsets = chain.from_iterable(combinations(candidates, size) for size in range(len(candidates) + 1))
    best = max(sum(each.kl for each in subset) for subset in subsets if fits(subset))
    taken = chosen(candidates, most_bytes, most_ms)
    assert fits(taken) and sum(each.kl for each in taken) == pytest.approx(best, abs=1e-9)


def test_the_chosen_matrices_save_more_than_others_of_as_many_bytes(tmp_path):
    source = load_source(str(FOLDER))
    lines = []
    made = export(source, tmp_path / "mixed", ExportRequest(precision="mixed"), say=lines.append)
    assert made.bundle.precision == "int4" and len(lines) == 1 and "MB more than int4" in lines[0]
    bits = {each.name: each.bits for each in made.matrices}
    plan = resolve_plan(ExportRequest(precision="int4"), source, tmp_path / "int4")
    measured = calibrate(source, plan)
    candidates, _ = promotions(source, plan.form, measured.answers, 0.0)
    spare = sum(each.nbytes for each in candidates) / 2
    spent = sum(each.nbytes for each in candidates if bits[each.name] == 8)
    assert 0.8 * spare < spent <= spare
    others = chosen([each._replace(kl=float(bits[each.name] != 8)) for each in candidates], spare, None)
    kl = {"mixed": made.divergence.kl_mean}
    for name, promoted in {"int4": [], "others": others}.items():
        names = frozenset(part for each in promoted for part in each.name.split("+"))
        planned = plan._replace(eight_bits=names)
        kl[name] = export_planned(source, tmp_path / name, planned, measured).divergence.kl_mean
    assert kl["mixed"] < 0.7 * kl["int4"] and kl["mixed"] < 0.8 * kl["others"], kl
    rise = sum(each.kl for each in candidates)  # of int4 over int8, predicted to second order
    assert 0.3 * kl["int4"] < rise < 3 * kl["int4"], (rise, kl)
    assert divergence(made.bundle, measured.answers).kl_mean == pytest.approx(kl["mixed"])


@pytest.mark.parametrize(("options", "message"), [
    (["--precision", "int4", "--file-mb", "3"], "--file-mb is a limit of --precision mixed"),
    (["--precision", "auto", "--for", "raspberry-pi-5", "--decode-ms", "3"], "is a limit of --precision mixed"),
    (["--precision", "mixed", "--decode-ms", "3"], "name it with --for"),
    (["--precision", "mixed", "--file-mb", "-1"], "--file-mb -1 is not allowed"),
    (["--precision", "mixed", "--file-mb", "0.1"], "--file-mb 0.1 is less than"),
    (["--precision", "mixed", "--file-mb", "0.1"], "take in int4: give more"),
    (["--precision", "mixed", "--for", "raspberry-pi-5", "--decode-ms", "0.001"], "predicted in int4: give more"),
])  # fmt: skip
def test_limits_that_are_not_possible_are_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "embedded", "-o", str(tmp_path / "out"), *options])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_random_weights_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "opt-125m", "--weights", "random", "--precision", "mixed", "-o", str(tmp_path / "out"),
              "--context", "32"])  # fmt: skip
    assert "random weights or no tokenizer" in " ".join(capsys.readouterr().err.split())
