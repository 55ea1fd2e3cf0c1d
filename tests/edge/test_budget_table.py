"""The table of budgets is the only place that spells them: a row added to it reaches help, refusals and solvers."""

import ast
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import merino_edge
from merino_edge.cli.options import with_budgets
from merino_edge.design.budgets import BUDGETS_BY_NAME, Budget, shares_over
from merino_edge.design.designer import design, design_by_paper
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.space import Space
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError

BOARD = load_profile("raspberry-pi-zero-2w")
SPACE = Space(widths=(64, 128), depths=(2, 4, 6), ffn_ratios=(1.0, 2.0))
PAPER_SPACE = PaperSpace(widths=(64, 128), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=2, vocab=500)
ROOT = Path(merino_edge.__file__).parent


@pytest.fixture
def cache_budget(monkeypatch):
    """A table with one more row: the KV cache in MB."""
    row = Budget(
        "kv_mb", "cache", "the whole KV cache", "MB", of=lambda costs: costs.kv_bytes / 2**20
    )
    monkeypatch.setitem(BUDGETS_BY_NAME, row.name, row)
    return row


def test_a_budget_added_to_the_table_is_an_option_with_help(cache_budget):
    message = {}

    @with_budgets
    def command(limits: dict[str, float], device: str = "x") -> None:
        message.update(limits, device=device)

    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(budget.option in shown for budget in BUDGETS_BY_NAME.values())
    assert cache_budget.help == "budget in MB: the whole KV cache" and cache_budget.help in shown
    assert CliRunner().invoke(app, ["--kv-mb", "3", "--decode-ms", "5"]).exit_code == 0
    assert message == {"kv_mb": 3, "decode_ms": 5, "device": "x"}


def test_a_budget_added_to_the_table_binds_both_searches_and_is_named_by_a_refusal(cache_budget):
    def designed(**keys):
        return design(BOARD, keys, space=SPACE, context=256, prompt=64, kvs=[None])

    free = designed(kv_mb=1e6)
    tight = designed(kv_mb=0.6 * free.predicted.kv_bytes / 2**20)
    assert tight.predicted.kv_bytes <= 0.6 * free.predicted.kv_bytes and tight.entropy < free.entropy
    request = {"space": PAPER_SPACE, "context": 256, "prompt": 64}
    free = design_by_paper(BOARD, {"kv_mb": 1e6}, **request)
    paper = design_by_paper(BOARD, {"kv_mb": 0.6 * free.predicted.kv_bytes / 2**20}, **request)
    assert paper.predicted.kv_bytes <= 0.6 * free.predicted.kv_bytes and paper.entropy < free.entropy
    with pytest.raises(MerinoError, match=rf"{cache_budget.option} 0.001 is below \S+, .* \(the whole KV"):
        designed(kv_mb=0.001)


def spelled(tree):
    """The strings of each list, tuple, set, mapping, and the parameters of each function of a module."""
    for node in ast.walk(tree):
        inner = []
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            inner = node.elts
        elif isinstance(node, ast.Dict):
            inner = node.keys
        elif isinstance(node, ast.arguments):
            inner = [ast.Constant(argument.arg) for argument in (*node.args, *node.kwonlyargs)]
        yield {each.value for each in inner if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_no_other_module_spells_the_budgets_again():
    names = {*BUDGETS_BY_NAME, *(budget.option for budget in BUDGETS_BY_NAME.values())}
    wrong = {
        str(path.relative_to(ROOT)): sorted(result & names)
        for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "design/budgets.py"
        for result in spelled(ast.parse(path.read_text())) if len(result & names) > 2
    }
    assert wrong == {}


def test_a_verdict_has_the_tolerance_of_the_search():
    """An optimum fills its limit up to the rounding of sums; it must not be told that it breaks it."""
    result = design(BOARD, {"decode_ms": 4}, space=SPACE, context=64, prompt=32).predicted
    assert shares_over({"decode_ms": result.decode_ms * (1 - 1e-14)}, result) == {}
    over = shares_over({"decode_ms": result.decode_ms / 1.5, "memory_mb": 1e6}, result)
    assert over == {"decode_ms": pytest.approx(1.5)}
