"""Texts that several expressions match and others do not, as a table of states that all lead to an end."""
from typing import Callable, Dict, List, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import DEAD, NOTHING, Automaton

MOST_STATES = 8000
Build = Callable[[Automaton], int]


def product(make: Automaton, wanted: Sequence[Build], unwanted: Sequence[Build], refuse: Callable[[str], MerinoError]
            ) -> int:
    """Return an expression of the texts that all of wanted match and none of unwanted. Each builds its expression in
    the automaton that it gets. `refuse` makes the error for a table that would be too large."""
    # 1. One automaton of all expressions; a state here is one state of each.
    parts = Automaton(make.spelled, make.budget)
    nodes = [build(parts) for build in [*wanted, *unwanted]]
    first = tuple(parts.start(node) for node in nodes)
    count = len(wanted)
    classes = parts.classes()  # [256], of bytes that all expressions treat alike
    of_class = {classes[byte]: byte for byte in sorted(make.spelled)}
    columns = max(classes) + 1
    # 2. All states that can be reached from the first.
    number: Dict[Tuple[int, ...], int] = {first: 0}
    states, rows = [first], []  # type: List[Tuple[int, ...]], List[List[int]]
    for state in states:  # grows
        row = [-1] * columns
        for column, byte in of_class.items():
            after = tuple(parts.after(part, byte) for part in state)
            if DEAD in after[:count]:
                continue
            if after not in number:
                if len(states) >= MOST_STATES:
                    raise refuse(f"together with the keywords beside it, it needs more than {MOST_STATES:,} states")
                number[after] = len(states)
                states.append(after)
            row[column] = number[after]
        rows.append(row)
    ends = [all(map(parts.accepts, state[:count])) and not any(map(parts.accepts, state[count:])) for state in states]
    # 3. Those that lead to an end, from the ends backward.
    before: List[List[int]] = [[] for _ in states]
    for index, row in enumerate(rows):
        for following in set(row) - {-1}:
            before[following].append(index)
    useful = {index for index, end in enumerate(ends) if end}
    left = list(useful)
    while left:
        new = set(before[left.pop()]) - useful
        useful |= new
        left += new
    if 0 not in useful or DEAD in first[:count]:
        return NOTHING
    order = {index: place for place, index in enumerate(sorted(useful))}
    return make.table(bytes(classes), [[order.get(after, -1) for after in rows[index]] for index in order],
                      [ends[index] for index in order])
