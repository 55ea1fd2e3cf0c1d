"""The paper's three FLOPs budgets as presets, and a table of the optimal designs within them.

`python -m merino_edge.design.presets` prints the table of docs/search.md; a test holds the two equal. Only FLOPs are
limited, so the result is the same on any board. The space has multi-head attention only, as far as known of the paper.
"""

from typing import NamedTuple

from merino_edge.design import exact
from merino_edge.design.encode import architecture, encode
from merino_edge.design.score import MERINO
from merino_edge.design.space import FULL, Space
from merino_edge.families.operators import flops, params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile

CONTEXT = 1024


class Preset(NamedTuple):
    """`flops_g`: at 1024 tokens, without the LM head (recalled). `paper`: the paper's model, as far as known."""

    flops_g: float
    paper: str

    @property
    def limits(self) -> dict[str, float]:
        return {"flops_g": self.flops_g}


PRESETS = {
    "merino-52m": Preset(60, "52 M parameters (recalled)"),
    "merino-61m": Preset(110, "61 M parameters (recalled)"),
    "merino-64m": Preset(160, "64 M parameters, 5.5 times fewer than OPT-350M (known)"),
}


def table() -> str:
    """A row per preset in Markdown: shape (width x FFN ratio x layers), parameters, FLOPs, entropy, the paper's."""
    lines = [
        "| preset | budget, GFLOPs | shape | parameters | without embedding | GFLOPs | entropy | the paper's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, preset in PRESETS.items():
        space, shape = Space(kv_heads=FULL), InferenceShape("fp32", CONTEXT, CONTEXT // 2)
        program = encode(space, preset.limits, cost_model(load_profile("raspberry-pi-4"), shape), MERINO)
        optimum = exact.improve(program).solution
        assert optimum is not None
        arch = architecture(space, program, optimum.choice, CONTEXT)
        count, table_size = params(arch.operators), arch.vocab * arch.blocks[0].width
        lines.append(
            f"| `{name}` | {preset.flops_g:g} (recalled) | {arch.shape()} | {count / 1e6:.1f} M"
            f" | {(count - table_size) / 1e6:.1f} M | {flops(arch.operators) / 1e9:.2f} | {optimum.score:,.0f}"
            f" | {preset.paper} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
