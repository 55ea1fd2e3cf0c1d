"""Numbers of JSON within bounds, as expressions over their digits."""
import math
from decimal import Decimal
from typing import Callable, Optional, Tuple, Union

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import NOTHING, Automaton

DIGITS = b"0123456789"
MOST_DIGITS = 18  # before the point, where no bound has more
MOST_DECIMALS = 15  # behind it: more would round to a neighbor of a bound
STRICT_DIGITS = 9  # of a number that is excluded; 6 more decimals separate every number from it
STRICT_DECIMALS = 6
Bound = Optional[Union[int, float]]
Refuse = Callable[[str], MerinoError]


def integer(make: Automaton, low: Bound = None, high: Bound = None, above: Bound = None, below: Bound = None,
            refuse: Refuse = MerinoError) -> int:  # noqa: ARG001
    """Return the integers from low to high, strictly between above and below. None: no bound."""
    lows = [math.ceil(bound) for bound in (low,) if bound is not None]
    lows += [math.floor(bound) + 1 for bound in (above,) if bound is not None]
    highs = [math.floor(bound) for bound in (high,) if bound is not None]
    highs += [math.ceil(bound) - 1 for bound in (below,) if bound is not None]
    least, most = max(lows, default=None), min(highs, default=None)
    largest = 10 ** max(MOST_DIGITS, *(len(str(abs(bound))) + 1 for bound in (least or 0, most or 0))) - 1
    least, most = -largest if least is None else least, largest if most is None else most
    negative = _whole(make, max(1, -most), -least)
    return make.alt(_whole(make, max(0, least), most),
                    make.seq(make.lit(b"-"), negative) if negative != NOTHING else NOTHING)


def _whole(make: Automaton, least: int, most: int) -> int:
    """Return the integers from least to most, both 0 or more, without leading zeros."""
    choices = []
    for count in range(len(str(least)), len(str(max(most, 0))) + 1):
        first, last = max(least, 10 ** (count - 1) if count > 1 else 0), min(most, 10 ** count - 1)
        if first <= last:
            choices.append(_between(make, str(first), str(last)))
    return make.alt(*choices)


def _between(make: Automaton, first: str, last: str) -> int:
    """Return the digits from first to last, which are equally long: those that begin as first, between, as last."""
    if not first:
        return make.seq()
    rest = len(first) - 1
    any_rest = make.rep(make.one_of(DIGITS), rest, rest)
    if first[0] == last[0]:
        return make.seq(_digit(make, first[0]), _between(make, first[1:], last[1:]))
    if set(first) == {"0"} and set(last) == {"9"}:
        return make.rep(make.one_of(DIGITS), rest + 1, rest + 1)
    return make.alt(make.seq(_digit(make, first[0]), _between(make, first[1:], "9" * rest)),
                    make.seq(_digits(make, int(first[0]) + 1, int(last[0]) - 1), any_rest),
                    make.seq(_digit(make, last[0]), _between(make, "0" * rest, last[1:])))


def _digit(make: Automaton, digit: str) -> int:
    return make.lit(digit.encode())


def _digits(make: Automaton, first: int, last: int) -> int:
    return make.one_of(DIGITS[first:last + 1] if first <= last else b"")


def number(make: Automaton, low: Bound = None, high: Bound = None, above: Bound = None, below: Bound = None,
           refuse: Refuse = MerinoError) -> int:
    """Return the numbers within bounds, as `integer`. Bounded numbers have no exponent."""
    if (low, high, above, below) == (None, None, None, None):
        return _unbounded(make)
    lower = max([(Decimal(repr(bound)), strict) for bound, strict in ((low, False), (above, True))
                 if bound is not None], default=None)
    upper = min([(Decimal(repr(bound)), not strict) for bound, strict in ((high, False), (below, True))
                 if bound is not None], default=None)
    if upper is not None:
        upper = upper[0], not upper[1]
    strict = [bound for bound in (lower, upper) if bound and bound[1]]
    for bound, _ in strict:
        if sum(map(len, _parts(abs(bound)))) > STRICT_DIGITS:
            raise refuse(f"the excluded bound {bound} has more than {STRICT_DIGITS} digits, which is not supported")
    decimals = STRICT_DECIMALS if strict else MOST_DECIMALS
    zero = (Decimal(0), False)
    if lower and upper and (lower[0] > upper[0] or lower[0] == upper[0] and strict):
        return NOTHING
    node = NOTHING
    if upper is None or upper[0] > 0 or upper == zero:
        node = _magnitude(make, lower if lower and lower[0] >= 0 else zero, upper, decimals)
    if lower is None or lower[0] < 0:
        least = (abs(upper[0]), upper[1]) if upper and upper[0] <= 0 else zero
        negative = _magnitude(make, least, (-lower[0], lower[1]) if lower else None, decimals)
        node = make.alt(node, make.seq(make.lit(b"-"), negative))
    return node


def _unbounded(make: Automaton) -> int:
    """Return numbers up to about 1e308, which are finite as floats."""
    digit, some = make.one_of(DIGITS), make.one_of
    fraction = make.rep(make.seq(make.lit(b"."), make.rep(digit, 1, MOST_DIGITS)), 0, 1)
    e, sign = some(b"eE"), make.rep(some(b"+-"), 0, 1)
    small = make.rep(make.seq(e, sign, make.rep(digit, 1, 2)), 0, 1)
    large = make.seq(make.lit(b"-"), make.alt(make.seq(some(b"12"), digit, digit),
                                              make.seq(make.lit(b"30"), some(b"01234567"))))
    positive = make.seq(make.rep(make.lit(b"+"), 0, 1),
                        make.alt(make.seq(some(b"12"), digit, digit), make.seq(make.lit(b"30"), some(b"01234567"))))
    whole = make.alt(make.lit(b"0"), make.seq(some(DIGITS[1:]), make.rep(digit, 0, MOST_DIGITS - 1)))
    return make.seq(make.rep(make.lit(b"-"), 0, 1),
                    make.alt(make.seq(whole, fraction, small), make.seq(digit, fraction, e, make.alt(large, positive))))


def _parts(value: Decimal) -> Tuple[str, str]:
    """Return the digits before and behind the point, without trailing zeros."""
    whole, _, decimals = format(value, "f").partition(".")
    return whole, decimals.rstrip("0")


def _magnitude(make: Automaton, lower: Tuple[Decimal, bool], upper: Optional[Tuple[Decimal, bool]], decimals: int
               ) -> int:
    """Return numbers of 0 or more between bounds, each a value and whether it is excluded."""
    first, low = _parts(lower[0])
    last, high = _parts(upper[0]) if upper else ("", None)
    most = int(last) if last else 10 ** max(MOST_DIGITS, len(first) + 1)
    anything = ("", False), (None, False)
    above, below = (low, lower[1]), (high, bool(upper and upper[1]))
    if int(first) == most:
        return make.seq(make.lit(first.encode()), _fraction(make, above, below, decimals))
    choices = [make.seq(make.lit(first.encode()), _fraction(make, above, anything[1], decimals)),
               make.seq(_whole(make, int(first) + 1, most - 1), _fraction(make, *anything, decimals))]
    if upper:
        choices.append(make.seq(make.lit(last.encode()), _fraction(make, anything[0], below, decimals)))
    return make.alt(*choices)


def _fraction(make: Automaton, lower: Tuple[str, bool], upper: Tuple[Optional[str], bool], decimals: int) -> int:
    """Return what follows the integer part: nothing, or a point and up to `decimals` digits. lower, upper: digits
    behind the point and whether this bound is excluded; upper None: no bound."""
    above, below = lower[1], upper[1]

    def digits(low: Optional[str], high: Optional[str], left: int, may_end: bool) -> int:
        """low None: already above it. may_end: whether a digit precedes, so that the number may end here."""
        least = low or ""
        ended = may_end and not least and not (low is not None and above) and (high is None or bool(high) or not below)
        ending = make.seq() if ended else NOTHING
        if left <= 0 and not least and not high:
            return ending
        if low is None and high is None:
            return make.rep(make.one_of(DIGITS), 0 if may_end else 1, left)
        first = int(least[:1] or 0)
        last = int(high[:1] or 0) if high is not None else 9
        if first > last:
            return ending
        choices = [ending]
        for digit in sorted({first, last}):
            rest = digits(least[1:] if low is not None and digit == first else None,
                          high[1:] if high is not None and digit == last else None, left - 1, True)
            choices.append(make.seq(_digit(make, str(digit)), rest))
        if last - first > 1:
            choices.append(make.seq(_digits(make, first + 1, last - 1), digits(None, None, left - 1, True)))
        return make.alt(*choices)

    low, high = lower[0], upper[0]
    ends = not low and not above and (high is None or bool(high) or not below)
    return make.alt(make.seq() if ends else NOTHING, make.seq(make.lit(b"."), digits(low, high, decimals, False)))
