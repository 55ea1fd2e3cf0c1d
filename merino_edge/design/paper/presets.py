"""The paper's three FLOPs budgets, at 1024 tokens without the LM head (recalled), as presets named after the parameters
of the paper's models: 52 M and 61 M (recalled), and 64 M, 5.5 times fewer than OPT-350M (known).

Only FLOPs are limited, so the result is the same on any board.
"""

PRESETS = {"merino-52m": {"flops_g": 60.0}, "merino-61m": {"flops_g": 110.0}, "merino-64m": {"flops_g": 160.0}}
