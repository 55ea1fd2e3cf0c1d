"""An automaton over bytes, made of expressions. Its states are computed when they are first reached.

An expression is a node, an int; NOTHING matches no text. A stack is a node and the stack below it: what must still
follow. A state is a set of stacks (Antimirov's partial derivatives), so a repetition is counted by its node and is
never unrolled. A state that is not dead always leads to an end, since expressions that match nothing are left out.
A rule is an expression that may contain itself, up to a number of levels. Knows nothing of JSON but the characters of
its strings, and nothing of tokens.
"""
import time
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

import numpy as np

from merino_runtime.errors import MerinoError

NOTHING = -1
DEAD, END = 0, 0  # a state, a stack
SET, LIT, SEQ, ALT, REP, DIFFERENT, CALL, TABLE = range(8)
PLAIN = frozenset(range(0x20, 0x7F)) - {0x22, 0x5C}  # characters of a string, each one byte
MOST_NODES = 300000  # of expressions, stacks and states together
MOST_WORK = 2000000  # expressions opened in one step
STEP_S, COMPILE_S = 10.0, 30.0
DEEPEST = 16  # rules inside one another
NEVER = 10 ** 6  # the height of an expression that matches no text


class Budget:
    """Limits one step of a constraint, or its compilation, where the work is done."""

    def __init__(self, most_s: float = COMPILE_S, until_s: float = float("inf")) -> None:
        """until_s: by time.monotonic."""
        self.renew(most_s, until_s)

    def renew(self, most_s: float, until_s: float = float("inf")) -> None:
        self._left, self._until_s, self._most_s = MOST_WORK, min(time.monotonic() + most_s, until_s), most_s

    def spend(self, count: int) -> None:
        """Raise MerinoError if the work or the time is used up."""
        before = self._left
        self._left -= count
        if self._left < 0:
            raise MerinoError(f"the constraint is too large: one step of it needs more than {MOST_WORK:,} parts. "
                              "Give one with fewer alternatives and smaller repetitions.")
        if before >> 9 != self._left >> 9 and time.monotonic() > self._until_s:
            raise MerinoError(f"the constraint takes too long: one step of it may take {self._most_s:g} s, and no "
                              "longer than its request. Give one with fewer alternatives and smaller repetitions.")


class Automaton:
    def __init__(self, spelled: Iterable[int] = range(256), budget: Optional[Budget] = None) -> None:
        """spelled: bytes that the tokenizer has a token of; no others are ever matched."""
        self.spelled, self.budget = frozenset(spelled), budget or Budget()
        self._nodes: List[Tuple] = []
        self._node_of: Dict[Tuple, int] = {}
        self._heights: List[int] = []  # of each node: rules inside one another in its shortest text
        self._rules: List[int] = []  # the expression of each
        self._tables: List[Tuple[bytes, List[List[int]], List[bool]]] = []  # class of a byte, [states][classes], ends
        # (node, the stack below, rules around it); the first is END
        self._stacks: List[Tuple[int, int, int]] = [(NOTHING, NOTHING, 0)]
        self._stack_of: Dict[Tuple[int, int, int], int] = {}
        self._states: List[Tuple[int, ...]] = [()]  # stacks of each; the first is DEAD
        self._state_of: Dict[Tuple[int, ...], int] = {(): DEAD}
        self._opened: List[Optional[Tuple[int, ...]]] = [()]
        self._moves = np.zeros((16, 1), dtype=np.int32)  # [states, classes of bytes]: a state, -1 not computed
        self._class_of: Optional[np.ndarray] = None  # [256]; None while expressions are added
        self.char = self._json_char()

    # Expressions

    def one_of(self, data: Iterable[int]) -> int:
        """Return one byte of these."""
        bytes_spelled = self.spelled.intersection(data)
        return self._node(SET, bytes(sorted(bytes_spelled))) if bytes_spelled else NOTHING

    def lit(self, data: bytes) -> int:
        if not self.spelled.issuperset(data):
            return NOTHING
        return self._node(LIT, data) if data else self.seq()

    def seq(self, *parts: int) -> int:
        if NOTHING in parts:
            return NOTHING
        return parts[0] if len(parts) == 1 else self._node(SEQ, parts)

    def alt(self, *choices: int) -> int:
        nodes = tuple(sorted(set(choices) - {NOTHING}))
        if not nodes:
            return NOTHING
        return nodes[0] if len(nodes) == 1 else self._node(ALT, nodes)

    def rep(self, node: int, low: int = 0, high: int = -1) -> int:
        """low to high times, -1: without limit."""
        if node == NOTHING:
            high = 0
        if 0 <= high < low:
            return NOTHING
        return self._node(REP, node, low, high) if high else self.seq()

    def _fewer(self, node: int, low: int, high: int) -> int:
        """Return what is left of a repetition behind its first part."""
        return self.rep(node, max(low - 1, 0), high - 1 if high > 0 else high)

    def text(self, low: int = 0, high: int = -1) -> int:
        """Return a JSON string of low to high characters, from behind its first quote to its last one."""
        return self.seq(self.rep(self.char, low, high), self.lit(b'"'))

    def different(self, parts: Sequence[int], low: int, high: int, between: int) -> int:
        """low to high of the parts in any order, none of them twice, and `between` them that. Which are left is a
        set of bits, and a node for it is made when a state is opened, so that no order is spelled out."""
        parts = tuple(part for part in parts if part != NOTHING)
        high = min(high, len(parts))
        return NOTHING if high < low else self._different(parts, (1 << len(parts)) - 1, low, high, self.seq(), between)

    def _different(self, parts: Tuple[int, ...], left: int, low: int, high: int, first: int, between: int) -> int:
        """first: what stands before the next part."""
        return self._node(DIFFERENT, parts, left, low, high, first, between) if high else self.seq()

    def rule(self) -> int:
        """Return an expression that `define` gives its meaning to, so that it may contain itself."""
        self._rules.append(NOTHING)
        return self._node(CALL, len(self._rules) - 1)

    def define(self, rule: int, node: int) -> None:
        self._rules[self._nodes[rule][1]] = node

    def table(self, class_of: bytes, rows: List[List[int]], ends: List[bool]) -> int:
        """Return the texts of a table of states, from its first one. rows: the next state for each class of bytes, -1
        for none. Each state leads to an end."""
        self._tables.append((class_of, rows, ends))
        return self._node(TABLE, len(self._tables) - 1, 0)

    def _node(self, *expression: object) -> int:
        number = self._node_of.get(expression)
        if number is None:
            self._room()
            number = self._node_of[expression] = len(self._nodes)
            self._nodes.append(expression)
            self._heights.append(self._height(expression))
        return number

    def _room(self) -> None:
        self.budget.spend(1)
        if self.size >= MOST_NODES:
            raise MerinoError(f"the constraint is too large: it has more than {MOST_NODES:,} parts. Give a schema "
                              "with fewer alternatives and smaller repetitions.")

    @property
    def size(self) -> int:
        return len(self._nodes) + len(self._stacks) + len(self._states)

    def _height(self, expression: Tuple) -> int:
        kind, heights = expression[0], self._heights
        if kind == SEQ:
            return max([heights[part] for part in expression[1]], default=0)
        if kind == ALT:
            return min(heights[choice] for choice in expression[1])
        if kind == REP:
            return heights[expression[1]] if expression[2] else 0
        if kind == DIFFERENT and expression[3]:
            left = sorted(heights[part] for index, part in enumerate(expression[1]) if expression[2] >> index & 1)
            return left[expression[3] - 1] if len(left) >= expression[3] else NEVER
        if kind == CALL:
            node = self._rules[expression[1]]
            return min(NEVER, heights[node] + 1) if 0 <= node < len(heights) else NEVER
        return 0

    def matches(self, node: int) -> bool:
        """Return whether an expression matches any text, with all rules defined."""
        changed = bool(self._rules)
        while changed:
            self.budget.spend(len(self._nodes))
            changed = False
            for number, expression in enumerate(self._nodes):
                height = self._height(expression)
                changed, self._heights[number] = changed or height != self._heights[number], height
        return node != NOTHING and self._heights[node] <= DEEPEST

    def _json_char(self) -> int:
        some, lit, seq = self.one_of, self.lit, self.seq
        hexes = b"0123456789abcdefABCDEF"
        two, three = seq(some(hexes), some(hexes)), seq(some(hexes), some(hexes), some(hexes))
        high = seq(some(b"dD"), some(b"89abAB"), two, lit(b"\\u"), some(b"dD"), some(b"cdefCDEF"), two)
        plain = self.alt(seq(some(b"0123456789abcABCeEfF"), three), seq(some(b"dD"), some(b"01234567"), two))
        escape = seq(lit(b"\\"), self.alt(some(b'"\\/bfnrt'), seq(lit(b"u"), self.alt(plain, high))))
        return self.alt(escape, *[self.code_points(low, high) for low, high in (
            (0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))])

    def code_points(self, low: int, high: int) -> int:
        """Return one character from low to high, which must not enclose surrogates, in UTF-8."""
        for last in (0x7F, 0x7FF, 0xFFFF):  # of each length
            if low <= last < high:
                return self.alt(self.code_points(low, last), self.code_points(last + 1, high))
        for keep in (6, 12, 18):  # until all bytes behind the first that differs run from 80 to BF
            rest = (1 << keep) - 1
            if high > 0x7F and low >> keep != high >> keep:
                if low & rest:
                    return self.alt(self.code_points(low, low | rest), self.code_points((low | rest) + 1, high))
                if high & rest != rest:
                    return self.alt(self.code_points(low, (high & ~rest) - 1), self.code_points(high & ~rest, high))
        both = zip(chr(low).encode("utf-8"), chr(high).encode("utf-8"))  # noqa: B905
        return self.seq(*[self.one_of(range(first, last + 1)) for first, last in both])

    # States

    def start(self, node: int) -> int:
        """No expression is added afterwards. NOTHING gives DEAD."""
        if self._class_of is None:
            self._divide()
        return self.state_of([self._stack(node, END, 0)] if self.matches(node) else [])

    def accepts(self, state: int) -> bool:
        return self.inside_text(state) is None and END in self._open(state)

    def goes_on(self, state: int) -> bool:
        return self.inside_text(state) is not None or any(stack != END for stack in self._open(state))

    def stacks(self, state: int) -> Sequence[int]:
        return self._states[state]

    def text_on(self, stack: int) -> Optional[Tuple[int, int, int]]:
        """Return where the rest of a string is on top: its least and most characters, and the stack below, on which the
        quote is; else None."""
        node, below, _ = self._stacks[stack]
        kind, *data = self._nodes[node] if node != NOTHING else (SET,)
        return (data[1], data[2], below) if kind == REP and data[0] == self.char else None

    def inside_text(self, state: int) -> Optional[Tuple[int, int, int]]:
        """Return `text_on` of a state of one stack; else None."""
        stacks = self._states[state]
        return self.text_on(stacks[0]) if len(stacks) == 1 else None

    def run(self, state: int, data: bytes) -> int:
        for byte in data:
            state = self.after(state, byte)
        return state

    def after(self, state: int, byte: int) -> int:
        assert self._class_of is not None
        column = self._class_of[byte]
        state_after = int(self._moves[state, column])
        if state_after < 0:
            state_after = self._computed(state, byte)
            self._moves[state, column] = state_after
        return state_after

    def after_all(self, states: np.ndarray, data: np.ndarray) -> np.ndarray:
        """states [n], bytes [n] -> states [n]"""
        assert self._class_of is not None
        columns = self._class_of[data]
        states_after = self._moves[states, columns]
        unknown = np.flatnonzero(states_after < 0)
        if unknown.size:
            keys = states[unknown].astype(np.int64) * 256 + columns[unknown]
            first = unknown[np.unique(keys, return_index=True)[1]]
            for index in first.tolist():
                self.after(int(states[index]), int(data[index]))
            states_after = self._moves[states, columns]
        return states_after

    def only_byte(self, state: int) -> Optional[int]:
        """Return the byte that must come next; None if there are several, or if the text may end here."""
        candidates: Set[int] = set()
        if self.inside_text(state) is not None:
            return None
        for stack in self._open(state):
            if stack == END:
                return None
            kind, *data = self._nodes[self._stacks[stack][0]]
            if kind == TABLE:
                class_of, rows, _ = self._tables[data[0]]
                candidates.update(byte for byte in self.spelled if rows[data[1]][class_of[byte]] >= 0)
            else:
                candidates.update(data[0][:1] if kind == LIT else data[0])
            if len(candidates) > 1:
                return None
        return candidates.pop() if candidates else None

    def classes(self) -> List[int]:
        """Return the class of each byte: bytes of one class are treated alike."""
        if self._class_of is None:
            self._divide()
        assert self._class_of is not None
        return self._class_of.tolist()

    def _divide(self) -> None:
        """Bytes that every expression treats alike share a column of the table."""
        sets = [frozenset(expression[1]) for expression in self._nodes if expression[0] == SET]
        single = {byte for expression in self._nodes if expression[0] == LIT for byte in expression[1]} | {ord('"')}
        numbers: Dict[Tuple, int] = {}
        kinds = [(byte if byte in single else -1, tuple(byte in members for members in sets),
                  tuple(class_of[byte] for class_of, _, _ in self._tables)) for byte in range(256)]
        self._class_of = np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds], dtype=np.intp)
        self._moves = np.full((64, len(numbers)), -1, dtype=np.int32)
        self._moves[DEAD] = DEAD

    def _stack(self, node: int, below: int, depth: int) -> int:
        """Return the stack with a node on top; of a sequence, with its parts."""
        left = [node]
        while left:
            node = left.pop()
            if node != NOTHING and self._nodes[node][0] == SEQ:
                left += self._nodes[node][1]
                continue
            number = self._stack_of.get((node, below, depth))
            if number is None:
                self._room()
                number = self._stack_of[node, below, depth] = len(self._stacks)
                self._stacks.append((node, below, depth))
            below = number
        return below

    def state_of(self, stacks: Iterable[int]) -> int:
        key = tuple(sorted(set(stacks)))
        number = self._state_of.get(key)
        if number is None:
            self._room()
            number = self._state_of[key] = len(self._states)
            self._states.append(key)
            self._opened.append(None)
            if number >= len(self._moves):
                self._moves = np.concatenate([self._moves, np.full_like(self._moves, -1)])
        return number

    def _computed(self, state: int, byte: int) -> int:
        text = self.inside_text(state)
        if text and byte in PLAIN and byte in self.spelled:  # without opening it, for speed
            depth = self._stacks[self._states[state][0]][2]
            return self.state_of([self._stack(self._fewer(self.char, text[0], text[1]), text[2], depth)])
        stacks: Set[int] = set()
        for stack in self._open(state):
            if stack == END:
                continue
            node, below, depth = self._stacks[stack]
            kind, *data = self._nodes[node]
            if kind == TABLE:
                class_of, rows, _ = self._tables[data[0]]
                following = rows[data[1]][class_of[byte]] if byte in self.spelled else -1
                if following >= 0:
                    stacks.add(self._stack(self._node(TABLE, data[0], following), below, depth))
            elif kind == SET and byte in data[0]:
                stacks.add(below)
            elif kind == LIT and data[0][0] == byte:
                stacks.add(below if len(data[0]) == 1 else self._stack(self._node(LIT, data[0][1:]), below, depth))
        return self.state_of(stacks)

    def _open(self, state: int) -> Tuple[int, ...]:
        """Its stacks with a byte on top of each, or END."""
        opened = self._opened[state]
        if opened is None:
            seen: Set[int] = set()
            left, tops = list(self._states[state]), []
            while left:
                stack = left.pop()
                if stack in seen:
                    continue
                seen.add(stack)
                self.budget.spend(1)
                node, below, depth = self._stacks[stack]
                kind = SET if node == NOTHING else self._nodes[node][0]
                if kind in (SET, LIT):
                    tops.append(stack)
                elif kind == TABLE:
                    _, rows, ends = self._tables[self._nodes[node][1]]
                    number = self._nodes[node][2]
                    tops += [stack] if max(rows[number]) >= 0 else []
                    left += [below] if ends[number] else []
                else:
                    left += self._inner(node, below, depth)
            opened = self._opened[state] = tuple(sorted(tops))
        return opened

    def _inner(self, node: int, below: int, depth: int) -> List[int]:
        """Return the stacks that one with this node on top stands for, without those that reach no end."""
        expression = self._nodes[node]

        def stacks(nodes: Iterable[int], inside: int = depth) -> List[int]:
            return [self._stack(choice, below, inside) for choice in nodes
                    if self._heights[choice] + inside <= DEEPEST]

        if expression[0] == ALT:
            return stacks(expression[1])
        if expression[0] == CALL:
            return stacks([self._rules[expression[1]]], self._stacks[below][2] + 1)  # at a rule's end: no deeper
        if expression[0] == DIFFERENT:
            parts, left, low, high, first, between = expression[1:]
            choices = [self.seq(first, part, self._different(
                parts, left & ~(1 << index), max(low - 1, 0), high - 1, between, between))
                for index, part in enumerate(parts) if left >> index & 1]
            return [below] * (low == 0) + stacks(choices)
        unit, low, high = expression[1:]
        ends = [below] * (low == 0)
        below = self._stack(self._fewer(unit, low, high), below, depth)
        return stacks([unit]) + ends
