"""A grammar in GBNF, llama.cpp's language, as an expression over bytes.

Texts, classes of characters, `.`, groups, alternatives and repetitions are supported, tokens (`<think>`) are not. A
rule contains itself up to the automaton's number of levels, and without limit at its own end.
"""
import re
from typing import Dict, List, Set, Tuple

from merino_runtime.generation.constraints.automaton import Automaton
from merino_runtime.generation.constraints.pattern import LAST, Refuse, characters, regex

NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
TOKEN = re.compile(
    rf"(?P<space>(?:\s|#[^\n]*)+)|(?P<rule>{NAME})\s*::=|(?P<name>{NAME})|\"(?P<text>(?:[^\"\\]|\\.)*)\""
    r"|(?P<class>\[(?:[^\]\\]|\\.)+\])|(?P<times>[*+?]|\{\d{1,9}(?:,\d{0,9})?\})|(?P<sign>[.()|])", re.S)
ESCAPED = frozenset('nrtxuU\\"[]^-')
Tokens = List[Tuple[str, str]]  # a group of TOKEN, and its text


def gbnf(make: Automaton, text: str, refuse: Refuse) -> int:
    """Return the texts of the rule `root`. `refuse` makes the error for a grammar that cannot be read."""
    rules = _rules(text, refuse)
    made: Dict[str, int] = {}
    recursive: Set[str] = set()

    def rule(name: str) -> int:
        if name in made:
            recursive.add(name)  # if it is under way
            return made[name]
        if not rules.get(name):
            raise refuse(f"it has no rule {name[:80]}, or an empty one")
        call = made[name] = make.rule()
        node = choices(rules[name])
        if rules[name]:
            raise refuse(f"the rule {name[:80]} has a ) without a (")
        make.define(call, node)
        made[name] = call if name in recursive else node
        return made[name]

    def choices(tokens: Tokens) -> int:
        """Remove the tokens up to a closing parenthesis, and return their expression."""
        found: List[List[int]] = [[]]  # of the parts of each
        while tokens and tokens[-1] != ("sign", ")"):
            kind, text = tokens.pop()
            if (kind, text) == ("sign", "|"):
                found.append([])
            elif kind != "times":
                found[-1].append(part(kind, text, tokens))
            elif found[-1]:
                low, comma, high = {"*": "0,", "+": "1,", "?": "0,1"}.get(text, text[1:-1]).partition(",")
                most = int(high) if high else -1 if comma else int(low)
                found[-1].append(make.rep(found[-1].pop(), int(low), most))
            else:
                raise refuse(f"{text} has nothing before it")
        return make.alt(*[make.seq(*parts) for parts in found])

    def part(kind: str, text: str, tokens: Tokens) -> int:
        if kind == "name":
            return rule(text)
        if kind in ("text", "class"):  # Python's patterns have the same escapes
            unknown = set(re.findall(r"\\(.)", text, re.S)) - ESCAPED
            if unknown:
                raise refuse(f"the escape \\{unknown.pop()} is not known")
            if kind == "text":
                text = re.sub(r"(\\.)|(.)", lambda each: each.group(1) or re.escape(each.group(2)), text, flags=re.S)
            return regex(make, text, refuse)
        if text == ".":
            return characters(make, [(0, LAST)])
        node = choices(tokens)
        if not tokens:
            raise refuse("a ( has no )")
        tokens.pop()
        return node

    return rule("root")


def _rules(text: str, refuse: Refuse) -> Dict[str, Tokens]:
    """Return the tokens of each rule, the last one first."""
    rules: Dict[str, Tokens] = {}
    tokens: Tokens = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        kind = str(match.lastgroup) if match else ""
        if match is None or not rules and kind not in ("space", "rule"):
            raise refuse(f'{text[at:at + 40]!r} is no part of a rule, such as: root ::= "yes" | "no"')
        at = match.end()
        if kind == "rule":
            tokens = rules[match.group(kind)] = []
        elif kind != "space":
            tokens.append((kind, match.group(kind)))
    return {name: tokens[::-1] for name, tokens in rules.items()}
