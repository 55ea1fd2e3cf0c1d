"""The paper's three FLOPs budgets as presets. Only FLOPs are limited, so the result is the same on any board."""

from typing import NamedTuple


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
