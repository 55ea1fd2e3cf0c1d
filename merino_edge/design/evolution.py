"""The paper's search: evolution by mutation of one block at a time, no crossover (known); its sizes are recalled."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from merino_edge.design.law import even, law_score
from merino_edge.design.program import Program, Solution, smallest_choice, uniform
from merino_edge.prediction.limits import most_within
from merino_runtime.errors import MerinoError

Choice = tuple[int, ...]
PATIENCE = 20


@dataclass(frozen=True)
class Effort:
    """Mutations, population and parents: the paper's T, M and K.

    M and K are the recalled ones. T is twenty times the recalled 100,000, so that the gap to the optimum is under 1 %
    (measured).
    """

    steps: int = 2_000_000
    population: int = 512
    parents: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100_000_000:
            raise MerinoError(f"--steps {self.steps} is not allowed: choose 1 to 100000000 mutations")
        if not 2 <= self.population <= 1_000_000:
            raise MerinoError(f"--population {self.population} is not allowed: choose 2 to 1000000 decoders")
        if not 1 <= self.parents < self.population:
            raise MerinoError(
                f"of a population of {self.population} there cannot be {self.parents} parents: give --parents 1 to"
                f" {self.population - 1}; without it there are {type(self).parents}"
            )


def evolve(
    program: Program,
    *,
    seed: int = 0,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Maximize the score by mutation. Reproducible for a seed. It gives no bound.

    A child is its parent with another width, FFN ratio, depth, sharing or number of KV heads in one block. It
    joins the population if it keeps all constraints and its widths do not shrink. A full population is cut to its
    best parents. After PATIENCE x population mutations without a better decoder the search restarts from its
    first decoders (this project's addition: without restarts it ended up to 6 % below the optimum).
    """
    random = Random(seed)
    score = fast_score(program)
    moves = mutations(program)
    first = first_decoders(program)
    best, best_score = max(first.items(), key=lambda item: item[1])
    pool, members, top, since = list(first), dict(first), best_score, 0
    for step in range(effort.steps):
        parent = pool[random.randrange(len(pool))]
        block = random.randrange(program.blocks)
        child = (*parent[:block], random.choice(random.choice(moves[parent[block]])), *parent[block + 1 :])
        if child not in members:
            value = score(child)
            if value is not None:
                members[child] = value
                pool.append(child)
                if value > top:
                    top, since = value, step
                if value > best_score:
                    best, best_score = child, value
        if len(pool) >= effort.population:
            pool = sorted(pool, key=lambda member: (-members[member], member))[: effort.parents]
            members = {member: members[member] for member in pool}
            if progress:
                progress(step + 1)
        if step - since >= PATIENCE * effort.population:
            pool, members, top, since = list(first), dict(first), max(first.values()), step
    return Solution(best, best_score)


def first_decoders(program: Program) -> dict[Choice, float]:
    """The first population, with scores: the smallest decoder; under the measured law also uniform ones, since there
    layers must stay near equal, and a mutation of one block hardly ever leaves the smallest decoder."""
    solutions = [program.solution(smallest_choice(program)), *(uniform(program) if program.law else ())]
    return {tuple(each.choice): each.score for each in solutions}


def mutations(program: Program) -> list[list[list[int]]]:
    """For each option the lists of options that differ in one of its five properties. [O][kind][...]

    The largest number of KV heads counts as equal at each width, so that multi-head attention survives a new width.
    """
    most: dict[int, int] = {}
    for block in program.options:
        most[block.width] = max(most.get(block.width, 0), block.kv_heads or 0)
    keys = [
        (b.width, b.ffn_ratio, b.depth, b.shared, None if b.kv_heads == most[b.width] else b.kv_heads)
        for b in program.options
    ]  # fmt: skip
    buckets: dict[tuple, list[int]] = {}
    for index, key in enumerate(keys):
        for kind in range(5):
            buckets.setdefault((kind, *key[:kind], *key[kind + 1 :]), []).append(index)
    moves = []
    for index, key in enumerate(keys):
        kinds = [buckets[(kind, *key[:kind], *key[kind + 1 :])] for kind in range(5)]
        moves.append([[other for other in kind if other != index] for kind in kinds if len(kind) > 1] or [[index]])
    return moves


def fast_score(program: Program) -> Callable[[Choice], float | None]:
    """`Program.evaluate` on lists, several times faster for one decoder; None where a constraint is broken."""
    width, scores = program.width.tolist(), program.score.tolist()
    use, peak = program.use.T.tolist(), program.peak.T.tolist()  # [O][R]
    step, ends = program.step.tolist(), program.ends.tolist()  # [R][W][W]
    allowed = program.allowed.tolist()  # [W][W]
    rows, most = range(len(program.constraints)), most_within(1.0)
    law, layers, unit = program.law, program.layers.tolist(), program.unit.tolist()

    def score(choice: Choice) -> float | None:
        widths = [width[index] for index in choice]
        if not all(allowed[widths[0]][other] for other in widths) or not (law or widths == sorted(widths)):
            return None
        for row in rows:
            share = sum(use[index][row] for index in choice) + max(peak[index][row] for index in choice)
            share += sum(step[row][a][b] for a, b in zip(widths, widths[1:], strict=False))
            if share + ends[row][widths[0]][widths[-1]] > most:
                return None
        amount = sum(scores[index] for index in choice)
        if law is None:
            return amount
        depth = sum(layers[index] for index in choice)
        return law_score(amount, depth, law) if even(amount, depth, (unit[index] for index in choice)) else None

    return score
