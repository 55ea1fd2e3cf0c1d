"""Numbers of JSON within bounds, as expressions over their digits."""
import math
from decimal import Decimal
from typing import Any, Callable, Dict, Optional, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import NOTHING, Automaton

DIGITS = b"0123456789"
MOST_DIGITS = 18  # before the point, where no bound has more
MOST_DECIMALS = 15  # behind it: more would round to a neighbor of a bound
STRICT_DIGITS = 9  # of a number that is excluded; 6 more decimals separate every number from it
STRICT_DECIMALS = 6
Bound = Optional[Tuple[Decimal, bool]]  # a number and whether it is excluded; None: no bound


def integer(make: Automaton, limits: Dict[str, Any]) -> int:
    """Return the integers within limits, which are keywords of a schema."""
    lows = [math.ceil(limits["minimum"])] if "minimum" in limits else []
    lows += [math.floor(limits["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in limits else []
    highs = [math.floor(limits["maximum"])] if "maximum" in limits else []
    highs += [math.ceil(limits["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in limits else []
    low = (Decimal(max(lows)), False) if lows else None
    return _signed(make, low, (Decimal(min(highs)), False) if highs else None, 0)


def number(make: Automaton, limits: Dict[str, Any], refuse: Callable[[str], MerinoError]) -> int:
    """Return the numbers within limits, as `integer`. Numbers with a bound have no exponent."""
    lows = [(Decimal(repr(limits[name])), name != "minimum") for name in ("minimum", "exclusiveMinimum")
            if name in limits]
    highs = [(Decimal(repr(limits[name])), name == "maximum") for name in ("maximum", "exclusiveMaximum")
             if name in limits]
    if not lows and not highs:
        return _unbounded(make)
    low, high = max(lows, default=None), min(highs, default=None)
    high = high and (high[0], not high[1])
    spare = MOST_DECIMALS
    for bound, strict in filter(None, (low, high)):
        spare = STRICT_DECIMALS if strict else spare
        if strict and sum(map(len, _digits(bound.copy_abs()))) > STRICT_DIGITS:
            raise refuse(f"the excluded bound {bound} has more than {STRICT_DIGITS} digits, which is not "
                         "supported")
    longest = max(len(_digits(bound[0].copy_abs())[1]) for bound in (low, high) if bound)
    return _signed(make, low, high, longest + spare)


def _signed(make: Automaton, low: Bound, high: Bound, decimals: int) -> int:
    zero, positive, negative = (Decimal(0), False), NOTHING, NOTHING
    if high is None or high >= zero:
        positive = _unsigned(make, low if low and low[0] >= 0 else zero, high, decimals)
    if low is None or low[0] < 0:
        least = (high[0].copy_negate(), high[1]) if high and high[0] < 0 else (Decimal(0), True)  # no -0
        negative = _unsigned(make, least, low and (low[0].copy_negate(), low[1]), decimals)
    return make.alt(positive, make.seq(make.lit(b"-"), negative))


def _unsigned(make: Automaton, low: Tuple[Decimal, bool], high: Bound, decimals: int) -> int:
    """Return numbers of 0 or more between bounds."""
    if high and (high[0] < low[0] or high[0] == low[0] and (high[1] or low[1])):
        return NOTHING
    first, last = len(_digits(low[0])[0]), len(_digits(high[0])[0]) if high else 0
    return make.alt(*[
        _of_length(make, count, low if count == first else None, high if count == last else None, decimals)
        for count in range(first, (last or max(MOST_DIGITS, first + 1)) + 1)])


def _of_length(make: Automaton, count: int, low: Bound, high: Bound, decimals: int) -> int:
    """Return numbers with this count of digits before the point."""
    digit = make.one_of(DIGITS)
    least, most = ("".join(_digits(bound[0])) if bound else "" for bound in (low, high))
    fraction = make.rep(make.seq(make.lit(b"."), make.rep(digit, 1, decimals)), 0, 1) if decimals else make.seq()

    def follow(index: int, near_low: bool, near_high: bool) -> int:
        """Return what follows `index` digits. near_low: they are the first ones of the lower bound."""
        near_low = near_low and bool(least[index:].strip("0") or low and low[1])
        ends = index >= count and not near_low and not (
            near_high and not most[index:].strip("0") and high and high[1])
        if not near_low and not near_high and (index or count == 1):  # a first digit of several is not 0
            if index <= count:
                return make.seq(make.rep(digit, count - index, count - index), fraction)
            return make.rep(digit, 0, count + decimals - index)
        first = int(least[index:index + 1] or 0) if near_low else int(not index and count > 1)
        last = int(most[index:index + 1] or 0) if near_high else 9
        choices = [NOTHING]
        if index < count + decimals:
            choices += [make.seq(make.lit(b"%d" % edge), follow(index + 1, near_low and edge == first,
                                                                near_high and edge == last))
                        for edge in sorted({first, last}) if first <= last]
        if index < count + decimals and last - first > 1:
            choices.append(make.seq(make.one_of(DIGITS[first + 1:last]), follow(index + 1, False, False)))
        more = make.seq(make.lit(b".") if index == count else make.seq(), make.alt(*choices))
        return make.alt(more, make.seq() if ends else NOTHING)

    return follow(0, low is not None, high is not None)


def _digits(value: Decimal) -> Tuple[str, str]:
    """Return the digits before and behind the point, without trailing zeros."""
    whole, _, decimals = format(value, "f").partition(".")
    return whole, decimals.rstrip("0")


def _unbounded(make: Automaton) -> int:
    """Return numbers up to about 1e308, which are finite as floats."""
    digit, some = make.one_of(DIGITS), make.one_of
    fraction = make.rep(make.seq(make.lit(b"."), make.rep(digit, 1, MOST_DIGITS)), 0, 1)
    whole = make.alt(make.lit(b"0"), make.seq(some(DIGITS[1:]), make.rep(digit, 0, MOST_DIGITS - 1)))
    small = make.seq(make.rep(some(b"+-"), 0, 1), make.rep(digit, 1, 2))
    large = make.seq(make.rep(some(b"+-"), 0, 1), make.alt(
        make.seq(some(b"12"), digit, digit), make.seq(make.lit(b"30"), some(b"01234567"))))
    return make.seq(make.rep(make.lit(b"-"), 0, 1), make.alt(
        make.seq(whole, fraction), make.seq(whole, fraction, some(b"eE"), small),
        make.seq(digit, fraction, some(b"eE"), large)))
