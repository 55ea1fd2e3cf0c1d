"""Properties of the cost model: it adds up under each regime, it grows with the model, and the best regime is found."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.families.designed import Architecture, Block
from merino_edge.families.zoo import model
from merino_edge.prediction import latency as times
from merino_edge.prediction import predict as costs
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.latency import Regime, Workload
from merino_edge.prediction.latency_terms import amounts
from merino_edge.prediction.predict import predict
from merino_edge.profiles.reading import load_profile, profile_ids

FORMATS = ("fp32", "int8", "int4")
BOARDS = {board: load_profile(board) for board in profile_ids()}
OPT_350M = model("opt-350m").geometry.operators


@st.composite
def decoders(draw, most=512):
    widths = sorted(draw(st.lists(st.sampled_from(range(64, most + 1, 64)), min_size=1, max_size=3)))
    blocks = tuple(
        Block(width=width, ffn_ratio=draw(st.sampled_from([1, 1.5, 3])), depth=draw(st.integers(1, 4)),
              shared=draw(st.booleans()))
        for width in widths
    )  # fmt: skip
    return Architecture(blocks=blocks, vocab=draw(st.sampled_from([512, 8000, 50257])), head_size=32)


works = st.builds(Workload, st.sampled_from(FORMATS), st.integers(8, 2048), st.integers(1, 600))
boards = st.sampled_from(list(BOARDS.values()))


@given(decoders(), boards, works, st.data())
def test_costs_add_up_under_each_regime(arch, profile, work, data):
    regime = data.draw(st.sampled_from(times.regimes(profile, work)))
    operators = arch.operators
    cut = data.draw(st.integers(0, len(operators)))
    for measure in (times.decode_ms, times.prefill_ms):
        parts = [measure(part, profile, work, regime) for part in (operators[:cut], operators[cut:]) if part]
        assert sum(parts) == pytest.approx(measure(operators, profile, work, regime), rel=1e-9), measure
    for measure in (times.read_mb, costs.resident_mb):
        parts = [measure(part, profile, work) for part in (operators[:cut], operators[cut:])]
        assert sum(parts) == pytest.approx(measure(operators, profile, work), rel=1e-9), measure


@given(decoders(), boards, works)
def test_a_prediction_is_never_above_any_regime_that_holds(arch, profile, work):
    """So a decoder that keeps a budget under a regime keeps it as predicted; and one regime is no looser than that."""
    found = predict(arch.operators, profile, work)
    holds = []
    for regime in times.regimes(profile, work):
        ceiling = times.ceiling_mb(profile, work, regime)
        if ceiling is None or times.read_mb(arch.operators, profile, work) <= ceiling:
            lines = [times.decode_ms(arch.operators, profile, work, regime)]
            if regime.cache == "partly":  # whose line runs below the truth where the caches hold all
                within = Regime(regime.decode_threads, regime.prefill_threads, "within")
                lines.append(times.decode_ms(arch.operators, profile, work, within))
            holds.append(max(lines))
    assert found.decode_ms == pytest.approx(min(holds), rel=1e-9)  # all reads of these boards have one rate
    assert 0 < found.decode_ms < 1e6 and 0 < found.prefill_ms < 1e7
    assert found.memory_mb > profile.performance.runtime_mb.value
    assert found.provenance == "estimated"


@given(decoders(), works, st.floats(0.05, 20))
def test_a_search_sums_up_to_what_is_predicted_in_each_regime(arch, work, rate):
    """So a budget that a search fills is filled by the prediction too."""
    profile = with_memory(BOARDS["jetson-orin-nano"], rate)
    unit_times = times.times_for(profile, work)
    for at, count in enumerate(unit_times.threads):
        step = times.run_of(arch.operators, profile, work, count, [(1, work.context)])
        share = times.missed_share(arch.operators, profile, work, count)
        read = times.read_mb(arch.operators, profile, work)
        beyond = unit_times.cache_beyond_mb[at]
        cache = "within" if read <= unit_times.cache_within_mb[at] else "partly" if read <= beyond else "beyond"
        summed = times.decode_ms(arch.operators, profile, work, Regime(count, count, cache))
        assert summed == pytest.approx(step.cached_ms + share * step.memory_ms, rel=1e-9)


def with_memory(profile, rate):
    """The board with coefficients of its own, whose memory is so many times as slow."""
    own = estimated(profile)
    slower = own.model_copy(update={"memory_ms_gb": tuple(rate * ms for ms in own.memory_ms_gb)})
    speed = profile.performance.model_copy(update={"coefficients": slower})
    return profile.model_copy(update={"performance": speed})


def test_apart_thread_counts_hold_packed_weights_twice():
    profile, work = BOARDS["raspberry-pi-5"], Workload("fp32", 512, 256)
    one, two = (costs.memory_mb(OPT_350M, profile, work, Regime(4, count, "beyond")) for count in (4, 2))
    cache_mb = 24 * 512 * 2 * 1024 * 4 / 2**20
    assert two - one == pytest.approx(costs.resident_mb(OPT_350M, profile, work) - cache_mb)
    tight = predict(OPT_350M, profile, work, {"memory_mb": one + 1})
    assert tight.decode_threads == tight.prefill_threads


@given(decoders(), boards, works)
def test_nothing_gets_cheaper_by_growing(arch, profile, work):
    small = predict(arch.operators, profile, work)
    larger = [
        (arch.model_copy(update={"blocks": (*arch.blocks, arch.blocks[-1])}), work),
        (arch.model_copy(update={"vocab": 2 * arch.vocab}), work),
        (arch, Workload(work.precision, 2 * work.context, work.prompt)),
    ]
    for other, its_work in larger:
        found = predict(other.operators, profile, its_work)
        assert found.decode_ms >= small.decode_ms * (1 - 1e-9)
        before = costs.memory_mb(arch.operators, profile, work)
        assert costs.memory_mb(other.operators, profile, its_work) >= before
    longer = predict(arch.operators, profile, Workload(work.precision, work.context, work.prompt + 50))
    assert longer.prefill_ms > small.prefill_ms


@pytest.mark.parametrize("board", BOARDS)
def test_decode_time_does_not_jump_where_the_caches_end(board):
    profile, work = BOARDS[board], Workload("fp32", 16, 16)
    unit_times = estimated(profile)
    arch = Architecture(blocks=(Block(width=64, ffn_ratio=1, depth=1),), vocab=256, head_size=32)
    operators = arch.operators
    read = times.read_mb(operators, profile, work)
    at = unit_times.threads.index(1)
    edges = {("within", "partly"): unit_times.cache_within_mb, ("partly", "beyond"): unit_times.cache_beyond_mb}
    for (lower, upper), edge in edges.items():
        size = profile.cpu.last_level_cache_mb
        cache = size.model_copy(update={"value": size.value * read / edge[at]})  # this decoder sits on the edge
        scaled = profile.model_copy(update={"cpu": profile.cpu.model_copy(update={"last_level_cache_mb": cache})})
        below, above = (times.decode_ms(operators, scaled, work, Regime(1, 1, cache)) for cache in (lower, upper))
        assert below == pytest.approx(above, rel=1e-9)


def test_shared_weights_that_fit_the_cache_are_read_once():
    profile = BOARDS["jetson-orin-nano"]  # 4 MB
    regime, work = Regime(4, 4, "beyond"), Workload("fp32", 64, 16)

    def milliseconds(width, shared):
        arch = Architecture(blocks=(Block(width=width, ffn_ratio=1, depth=4, shared=shared),), vocab=256)
        return times.decode_ms(arch.operators, profile, work, regime)

    assert milliseconds(256, True) < 0.8 * milliseconds(256, False)
    assert milliseconds(1024, True) == pytest.approx(milliseconds(1024, False))


def test_the_last_layer_of_a_prefill_computes_one_position():
    one, two = (
        Architecture(blocks=(Block(width=64, ffn_ratio=2, depth=depth),), vocab=256).operators for depth in (1, 2)
    )
    linears = [[op for op in ops if op.kind == "linear"] for ops in (one, two)]
    macs = [sum(amounts(op, "fp32", 100, 0)["fp32.mac_ms_g"] for op in ops) for ops in linears]
    width = 64
    layer, tail = 8 * width * width, 5 * width * width  # all matrices; all but queries, keys and values
    assert macs[0] * 1e6 == pytest.approx(100 * (layer - tail) + tail)
    assert (macs[1] - macs[0]) * 1e6 == pytest.approx(100 * layer)


def test_quantised_products_are_slow_without_their_instructions():
    """Per token of a long prefill: with dot products int8 beats fp32, without it does not."""
    for board, faster in (("raspberry-pi-5", True), ("raspberry-pi-4", False)):
        works = [Workload(form, 512, 256) for form in FORMATS]
        fp32, int8, int4 = (predict(OPT_350M, BOARDS[board], work, {}) for work in works)
        assert (int8.prefill_ms < 0.8 * fp32.prefill_ms) == faster
        assert (int4.prefill_ms < 0.8 * fp32.prefill_ms) == faster
        assert (int8.decode_ms < fp32.decode_ms) == faster


def test_decode_and_prefill_choose_their_own_thread_counts():
    found = predict(OPT_350M, BOARDS["raspberry-pi-5"], Workload("fp32", 512, 256), {})
    assert (found.decode_threads, found.prefill_threads) == (2, 4)  # as published for this board


@given(decoders(), st.integers(0, 900))
def test_amounts_are_never_negative(arch, past):
    for op, precision, tokens in itertools.product(arch.operators, FORMATS, (1, 64)):
        for dialect in ("fused", "portable"):
            assert all(amount >= 0 for amount in amounts(op, precision, tokens, past, dialect).values())
