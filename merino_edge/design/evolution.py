"""The paper's search: evolution by mutating one block at a time, no crossover (known); its sizes are recalled."""

from collections.abc import Callable
from random import Random

from merino_edge.design.space import Program, Solution, smallest_choice

STEPS = 100_000  # T, recalled
POPULATION = 512  # M, recalled
PARENTS = 64  # K, recalled

Choice = tuple[int, ...]


def evolve(
    program: Program,
    *,
    seed: int = 0,
    steps: int = STEPS,
    population: int = POPULATION,
    parents: int = PARENTS,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Maximise the score by `steps` mutations. Repeatable for a seed; proves nothing, so there is no bound.

    A child takes its parent, changes width, FFN ratio, depth or sharing of one block, and lives if it is within the
    budgets and its widths do not shrink. At `population` members the best `parents` stay.
    """
    random = Random(seed)
    score = fast_score(program)
    moves = mutations(program)
    first = smallest_choice(program)
    members: dict[Choice, float] = {first: score(first) or 0.0}
    pool = [first]
    for step in range(steps):
        parent = pool[random.randrange(len(pool))]
        block = random.randrange(program.blocks)
        child = (*parent[:block], random.choice(random.choice(moves[parent[block]])), *parent[block + 1 :])
        if child not in members:
            value = score(child)
            if value is not None:
                members[child] = value
                pool.append(child)
        if len(pool) >= population:
            pool = sorted(pool, key=lambda member: (-members[member], member))[:parents]
            members = {member: members[member] for member in pool}
            if progress:
                progress(step + 1)
    best = max(members, key=lambda member: (members[member], member))
    return Solution(best, members[best], None)


def mutations(program: Program) -> list[list[list[int]]]:
    """For each option the lists of options that differ in one of its four properties. [O][kind][...]"""
    keys = [(block.width, block.ffn_ratio, block.depth, block.shared) for block in program.options]
    buckets: dict[tuple, list[int]] = {}
    for index, key in enumerate(keys):
        for kind in range(4):
            buckets.setdefault((kind, *key[:kind], *key[kind + 1 :]), []).append(index)
    found = []
    for index, key in enumerate(keys):
        kinds = [buckets[(kind, *key[:kind], *key[kind + 1 :])] for kind in range(4)]
        found.append([[other for other in kind if other != index] for kind in kinds if len(kind) > 1] or [[index]])
    return found


def fast_score(program: Program) -> Callable[[Choice], float | None]:
    """`Program.evaluate` on plain lists, several times faster for one decoder; None outside the budgets."""
    width, scores = program.width.tolist(), program.score.tolist()
    use, peak = program.use.T.tolist(), program.peak.T.tolist()  # [O][R]
    step, ends = program.step.tolist(), program.ends.tolist()  # [R][W][W]
    allowed = program.allowed.tolist()  # [W][W]
    budgets = range(len(program.names))

    def score(choice: Choice) -> float | None:
        widths = [width[index] for index in choice]
        if not allowed[widths[0]][widths[-1]] or widths != sorted(widths):
            return None
        for row in budgets:
            share = sum(use[index][row] for index in choice) + max(peak[index][row] for index in choice)
            share += sum(step[row][a][b] for a, b in zip(widths, widths[1:], strict=False))
            if share + ends[row][widths[0]][widths[-1]] > 1:
                return None
        return sum(scores[index] for index in choice)

    return score
