"""Which tokens a constraint allows: a trie of a tokenizer's tokens, walked level by level beside an automaton.

A mask is computed once for each state of the automaton and then kept. Inside a JSON string most tokens of a vocabulary
are allowed. Their numbers of characters are counted once for each tokenizer, so that such a mask is a comparison, and a
traversal of the few tokens that continue behind the closing quote.
"""
import contextlib
import threading
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import DEAD, END, STEP_S, Automaton

LONGEST_TOKEN_BYTES = 256  # longer ones are left out: shorter ones spell the same
TAIL_BYTES = 64  # of the answer, before a forced text: enough for the tokenizer to go on from
KEPT_MASKS = 2000
OUTSIDE = 2 ** 14  # characters, of a token that is not the inside of a string


class Trie:
    """The tokens of a tokenizer by their bytes. Node 0 is the root; the children of a node are neighbors."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: text.Tokenizer."""
        self.tokenizer = tokenizer
        self.spellings: List[bytes] = tokenizer.spellings()
        ids = [number for number, data in enumerate(self.spellings) if 0 < len(data) <= LONGEST_TOKEN_BYTES]
        ids.sort(key=self.spellings.__getitem__)
        self.node_of = np.zeros(len(self.spellings), dtype=np.int32)  # [vocab], the root for those left out
        self._build(np.array(ids, dtype=np.intp), [self.spellings[number] for number in ids])
        self.spelled = frozenset(data[0] for data in self.spellings if len(data) == 1)
        self._count_characters()

    def _build(self, ids: np.ndarray, tokens: Sequence[bytes]) -> None:
        """tokens: sorted."""
        flat = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        lengths = np.array([len(token) for token in tokens], dtype=np.intp)
        starts = np.cumsum(lengths) - lengths
        nodes = np.zeros(len(tokens), dtype=np.int64)  # at which each token stands
        parents, data, count, depth = [np.zeros(0, np.int64)], [np.zeros(1, np.uint8)], 1, 0
        active = np.arange(len(tokens))
        while active.size:
            byte = flat[starts[active] + depth]
            key = nodes[active] * 256 + byte
            new = np.concatenate([[True], key[1:] != key[:-1]])
            parents.append(nodes[active][new])
            data.append(byte[new])
            nodes[active] = count + np.cumsum(new) - 1
            count, depth = count + int(new.sum()), depth + 1
            active = active[lengths[active] > depth]
        self.byte = np.concatenate(data)  # [nodes]
        self.children = np.bincount(np.concatenate(parents), minlength=count)  # [nodes]: how many
        self.first_child = 1 + np.cumsum(self.children) - self.children  # [nodes]
        self.node_of[ids] = nodes
        self.ends = np.zeros(count, dtype=bool)  # [nodes]: whether a token ends there
        self.ends[nodes] = True

    def below(self, nodes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """nodes [n] -> all their children [m], and the index in `nodes` of each one's parent [m]."""
        counts = self.children[nodes]
        parents = np.repeat(np.arange(len(nodes)), counts)
        first = self.first_child[nodes] - (np.cumsum(counts) - counts)
        return first[parents] + np.arange(len(parents)), parents

    def reach(self, automaton: Automaton, nodes: np.ndarray, states: np.ndarray, reached: np.ndarray) -> None:
        """Set in `reached` [nodes] all nodes below nodes [n] in states [n] whose bytes lead to no dead state."""
        while nodes.size:
            nodes, parents = self.below(nodes)
            states = automaton.after_all(states[parents], self.byte[nodes])
            alive = np.flatnonzero(states != DEAD)
            nodes, states = nodes[alive], states[alive]
            reached[nodes] = True

    def find(self, data: bytes) -> int:
        """Return the node of these bytes, 0 if no token begins so."""
        node = 0
        for byte in data:
            first = int(self.first_child[node])
            inside = self.byte[first:first + int(self.children[node])]
            index = int(np.searchsorted(inside, byte))
            if index == len(inside) or inside[index] != byte:
                return 0
            node = first + index
        return node

    def _count_characters(self) -> None:
        """`characters` [vocab]: of each token inside a JSON string, an incomplete one too. `closed`: nodes at whose
        byte such a string ends, `closed_characters`: what is before it."""
        automaton = Automaton(self.spelled)
        between = automaton.start(automaton.text())
        counts = np.full(len(self.byte), OUTSIDE, dtype=np.int16)
        nodes, states, counted = np.zeros(1, np.int64), np.array([between]), np.zeros(1, np.int16)
        over = automaton.state_of([END])
        closed, before = [np.zeros(0, np.int64)], [np.zeros(0, np.int16)]
        while nodes.size:
            nodes, parents = self.below(nodes)
            counted = counted[parents] + (states[parents] == between)
            states = automaton.after_all(states[parents], self.byte[nodes])
            closed.append(nodes[states == over])
            before.append(counted[states == over] - 1)
            alive = np.flatnonzero((states != DEAD) & (states != over))
            nodes, states, counted = nodes[alive], states[alive], counted[alive].astype(np.int16)
            counts[nodes] = counted
        self.characters = counts[self.node_of]
        self.closed, self.closed_characters = np.concatenate(closed), np.concatenate(before)
        inside = self.characters[self.characters < OUTSIDE]
        self.most_characters = int(max(np.max(inside, initial=0), np.max(self.closed_characters, initial=0)))


class Grammar:
    """A constraint for one tokenizer. Its states may be used in several threads, each state in one."""

    def __init__(self, trie: Trie, automaton: Automaton, node: int, eos_ids: Iterable[int] = ()) -> None:
        self.trie, self.automaton, self.eos_ids = trie, automaton, tuple(eos_ids)
        self._lock = threading.RLock()  # held while the automaton may grow
        self._start = automaton.start(node)
        self._masks: Dict[Any, np.ndarray] = {}  # packed bits
        self.vocab = max([len(trie.spellings), *[token_id + 1 for token_id in self.eos_ids]])

    def start(self, until_s: float = float("inf")) -> "State":
        """until_s: by time.monotonic; after it, work on this text raises MerinoError."""
        return State(self, self._start, b"", until_s)

    @contextlib.contextmanager
    def step(self, until_s: float) -> Iterator[Automaton]:
        """Lock the automaton, which then has the time and the work of one step."""
        with self._lock:
            self.automaton.budget.renew(STEP_S, until_s)
            yield self.automaton

    def mask(self, state: int) -> np.ndarray:
        """[vocab], without the EOS."""
        key = self._key(state)
        packed = self._masks.get(key)
        if packed is not None:
            return np.unpackbits(packed, count=self.vocab).view(bool)
        automaton, trie = self.automaton, self.trie
        allowed = np.zeros(self.vocab, dtype=bool)
        reached = np.zeros(len(trie.byte), dtype=bool)
        others: List[int] = []
        for stack in automaton.stacks(state):
            text = automaton.text_on(stack)
            if text is None:
                others.append(stack)
                continue
            low, high, below = text
            most = high if 0 <= high < OUTSIDE else OUTSIDE - 1
            allowed[:len(trie.characters)] |= trie.characters <= most
            closed = trie.closed[(low <= trie.closed_characters) & (trie.closed_characters <= most)]
            reached[closed] = True
            behind = automaton.after(automaton.state_of([below]), ord('"'))
            trie.reach(automaton, closed, np.full(len(closed), behind), reached)
        if others:
            trie.reach(automaton, np.zeros(1, np.int64), np.array([automaton.state_of(others)]), reached)
        allowed[:len(trie.node_of)] |= reached[trie.node_of]
        if len(self._masks) >= KEPT_MASKS:
            self._masks.clear()
        self._masks[key] = np.packbits(allowed)
        return allowed

    def _key(self, state: int) -> Any:
        """States inside a string have the same mask where no token reaches its least or most characters."""
        text = self.automaton.inside_text(state)
        if text is None:
            return state
        low, high, below = text
        most = self.trie.most_characters
        return min(low, most + 1), high if 0 <= high < most else -1, below


class State:
    """How far an answer has come."""

    def __init__(self, grammar: Grammar, number: int, tail: bytes, until_s: float, ended: bool = False) -> None:
        self._grammar, self._number, self._tail, self._ended = grammar, number, tail, ended
        self._until_s = until_s

    def copy(self) -> "State":
        return State(self._grammar, self._number, self._tail, self._until_s, self._ended)

    @property
    def finished(self) -> bool:
        """Return whether the text may end here."""
        with self._grammar.step(self._until_s) as automaton:
            return self._ended or automaton.accepts(self._number)

    @property
    def ended(self) -> bool:
        """Return whether nothing but an EOS may follow."""
        with self._grammar.step(self._until_s) as automaton:
            return self._ended or not automaton.goes_on(self._number)

    def allowed(self) -> np.ndarray:
        """[vocab] of bool: the tokens that may follow, the EOS among them where the text may end."""
        grammar = self._grammar
        with grammar.step(self._until_s):
            allowed = np.zeros(grammar.vocab, dtype=bool) if self._ended else grammar.mask(self._number)
        if self.finished:
            allowed[list(grammar.eos_ids)] = True
        return allowed

    def advance(self, token_id: int) -> None:
        """MerinoError for a token that is not allowed here; the state is then as before."""
        grammar = self._grammar
        if token_id in grammar.eos_ids and self.finished:
            self._ended = True
            return
        data = grammar.trie.spellings[token_id] if 0 <= token_id < len(grammar.trie.spellings) else b""
        with grammar.step(self._until_s) as automaton:
            number = DEAD if self._ended or not data else automaton.run(self._number, data)
        if number == DEAD:
            raise MerinoError(f"token {token_id} ({data!r:.80}) is not allowed here by the constraint. Choose one that "
                              "`allowed` names.")
        self._number, self._tail = number, (self._tail + data)[-TAIL_BYTES:]

    def forced(self) -> List[int]:
        """Return the tokens that must follow, as the tokenizer writes their text: without the last ones where a longer
        token could stand in their place."""
        with self._grammar.step(self._until_s):
            data = b"" if self._ended else self._forced_bytes()
            if not data:
                return []
            ids = spelled(self._grammar.trie, self._tail, data)
            return self._kept(ids, self._grammar.automaton.run(self._number, data))

    def _forced_bytes(self) -> bytes:
        """Whole characters; none in the middle of one."""
        automaton, state, data = self._grammar.automaton, self._number, bytearray()
        byte = automaton.only_byte(state)
        while byte is not None:
            data.append(byte)
            state = automaton.after(state, byte)
            byte = automaton.only_byte(state)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            del data[error.start:]
        return bytes(data)

    def _kept(self, ids: List[int], state: int) -> List[int]:
        """state: behind ids."""
        automaton, trie = self._grammar.automaton, self._grammar.trie
        kept, rest = list(ids), b""
        for index in range(len(ids) - 1, -1, -1):
            rest = trie.spellings[ids[index]] + rest
            if len(rest) >= LONGEST_TOKEN_BYTES:
                break
            node = trie.find(rest)
            first, count = int(trie.first_child[node]), int(trie.children[node])
            if node and any(automaton.after(state, byte) != DEAD for byte in trie.byte[first:first + count].tolist()):
                kept = ids[:index]
        return kept


def spelled(trie: Trie, tail: bytes, data: bytes) -> List[int]:
    """Token ids of exactly these bytes, as the tokenizer writes them behind the tail or another beginning."""
    encode = trie.tokenizer.encode
    for before in (tail.decode("utf-8", "ignore"), "", "\n"):
        prefix, ids = encode(before, False), encode(before + data.decode("utf-8"), False)
        rest = ids[len(prefix):]
        spellings = [trie.spellings[token_id] if token_id < len(trie.spellings) else b"" for token_id in rest]
        if ids[:len(prefix)] == prefix and all(spellings) and b"".join(spellings) == data:
            return rest
    return []
