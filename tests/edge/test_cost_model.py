"""Properties of the cost model: it adds up under each regime, it grows with the model, and the best regime is found."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import with_coefficients

from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import CPU_FORMATS, linear, weight_bytes
from merino_edge.families.zoo import model as published
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.formats import formats_of, is_predicted
from merino_edge.prediction.latency import amounts, by_threads, latency
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.backends.threads import TWO_SESSIONS_BELOW_BYTES
from merino_runtime.errors import MerinoError

FORMATS = CPU_FORMATS
OPT_350M = published("opt-350m").geometry
BOARDS = {board: load_profile(board) for board in profile_ids()}
ON_CPU = {board: profile.with_backend("onnxruntime") for board, profile in BOARDS.items()}


@st.composite
def decoders(draw, most=512):
    widths = sorted(draw(st.lists(st.sampled_from(range(64, most + 1, 64)), min_size=1, max_size=3)))
    blocks = tuple(
        Block(width=width, ffn_ratio=draw(st.sampled_from([1, 1.5, 3])), depth=draw(st.integers(1, 4)),
              shared=draw(st.booleans()))
        for width in widths
    )  # fmt: skip
    return Architecture(blocks=blocks, vocab=draw(st.sampled_from([512, 8000, 50257])), head_size=32)


shapes = st.builds(InferenceShape, st.sampled_from(FORMATS), st.integers(8, 2048), st.integers(1, 600))
MACHINES = [board.with_backend(backend) for board in BOARDS.values() for backend in board.backends]
models = st.sampled_from(MACHINES).flatmap(
    lambda board: st.builds(
        cost_model, st.just(board),
        st.builds(InferenceShape, st.sampled_from(formats_of(board)), st.integers(8, 2048), st.integers(1, 600)),
    )
)  # fmt: skip


@given(decoders(), models, st.data())
def test_costs_add_up_under_each_regime(arch, model, data):
    regime = data.draw(st.sampled_from(model.regimes()))
    operators = arch.operators
    cut = data.draw(st.integers(0, len(operators)))
    for cost in (
        lambda ops: model.decode_ms(ops, regime.decode_threads, regime.residency),
        lambda ops: model.prefill_ms(ops, regime.prefill_threads, regime.residency),
        model.read_mb,
        lambda ops: model.in_use_mb(ops, regime.sessions),
        lambda ops: model.opening_mb(ops, regime.sessions),
        model.added_file_mb,
    ):
        parts = [cost(part) for part in (operators[:cut], operators[cut:]) if part]
        assert sum(parts) == pytest.approx(cost(operators), rel=1e-9)


@given(decoders(), models)
def test_a_prediction_is_never_above_any_regime_that_holds(arch, model):
    """So a decoder that keeps a limit under a regime keeps it as predicted; and one regime is no looser than that."""
    result = model.predict(arch.operators)
    holds = []
    for regime in model.regimes():
        ceiling = model.ceiling_mb(regime)
        if ceiling is None or model.read_mb(arch.operators) <= ceiling:
            lines = [model.decode_ms(arch.operators, regime.decode_threads, regime.residency)]
            if regime.residency == "partial":  # whose line runs below the truth where the caches hold all
                lines.append(model.decode_ms(arch.operators, regime.decode_threads, "resident"))
            holds.append(max(lines))
    assert result.decode_ms == pytest.approx(min(holds), rel=1e-9)  # all reads of these boards have one rate
    assert 0 < result.decode_ms < 1e6 and 0 < result.prefill_ms < 1e7
    assert result.memory_mb > model.runtime_mb
    assert result.provenance == "estimated"


@given(decoders(), shapes, st.floats(0.05, 20))
def test_a_search_sums_up_to_what_is_predicted_in_each_residency(arch, shape, rate):
    """So a limit that a search fills is filled by the prediction too."""
    model = cost_model(with_memory(ON_CPU["jetson-orin-nano"], rate), shape)
    read_mb = model.read_mb(arch.operators)
    for count, at in model.on.by_threads.items():
        step = model.on.latency(arch.operators, model.on.decode_runs, count)
        residency = (
            "resident" if read_mb <= at.resident_mb else "partial" if read_mb <= at.streaming_mb else "streaming"
        )
        predicted = step.cached_ms + at.missed_share(read_mb) * step.memory_ms
        assert model.decode_ms(arch.operators, count, residency) == pytest.approx(predicted, rel=1e-9)


def with_memory(profile, rate):
    """The board with coefficients of its own, whose memory is `rate` times as slow."""
    own = estimated(profile)
    slower = own.model_copy(update={"memory_ms_gb": tuple(rate * ms for ms in own.memory_ms_gb)})
    return with_coefficients(profile, slower)


def model_of(board, precision, context, prompt):
    return cost_model(ON_CPU[board], InferenceShape(precision, context, prompt))


def test_two_sessions_hold_prepacked_weights_twice():
    model, operators = model_of("raspberry-pi-5", "fp32", 512, 256), OPT_350M.operators
    one, two = (model.memory_mb(operators, sessions) for sessions in (1, 2))
    cache_mb = 24 * 512 * 2 * 1024 * 4 / 2**20
    assert two - one == pytest.approx(model.in_use_mb(operators) - cache_mb)
    for result in model.predict_each(operators):
        assert result.memory_mb == (one if result.decode_threads == result.prefill_threads else two)
    tight = model.predict(operators, {"memory_mb": one + 1})
    assert tight.decode_threads == tight.prefill_threads
    alone = model.predict(operators)  # as the runtime opens a bundle without a plan of threads
    assert alone.decode_threads == alone.prefill_threads and alone.memory_mb == one
    assert model.predict(operators, {}).memory_mb == two, "on this board the fastest counts differ"
    # So few weights that the runtime opens the second session by itself.
    small = Architecture(blocks=(Block(width=256, ffn_ratio=2, depth=4),), vocab=4096, head_size=32).operators
    assert weight_bytes(small, "fp32") < TWO_SESSIONS_BELOW_BYTES <= weight_bytes(operators, "fp32")
    assert model.predict(small) == model.predict(small, {}) and model.predict(small).prefill_threads == 4


@given(decoders(), models)
def test_nothing_gets_cheaper_by_growing(arch, model):
    shape = model.shape
    small = model.predict(arch.operators)
    wider = cost_model(model.profile, replace(shape, context=2 * shape.context))
    larger = [
        (arch.model_copy(update={"blocks": (*arch.blocks, arch.blocks[-1])}), model),
        (arch.model_copy(update={"vocab": 2 * arch.vocab}), model),
        (arch, wider),
    ]
    for other, its_model in larger:
        result = its_model.predict(other.operators)
        assert result.decode_ms >= small.decode_ms * (1 - 1e-9)
        assert its_model.memory_mb(other.operators) >= model.memory_mb(arch.operators)
    longer = cost_model(model.profile, replace(shape, prompt=shape.prompt + 64)).predict(arch.operators)
    assert longer.prefill_ms > small.prefill_ms


@pytest.mark.parametrize("board", ON_CPU)
def test_decode_latency_does_not_jump_at_the_edges_of_residency(board):
    profile, shape = ON_CPU[board], InferenceShape("fp32", 16, 16)
    operators = Architecture(blocks=(Block(width=64, ffn_ratio=1, depth=1),), vocab=256, head_size=32).operators
    model = cost_model(profile, shape)
    read_mb, at = model.read_mb(operators), model.on.by_threads[1]
    edges = {("resident", "partial"): at.resident_mb, ("partial", "streaming"): at.streaming_mb}
    for residencies, edge_mb in edges.items():
        size = profile.cpu.last_level_cache_mb
        cache = size.model_copy(update={"value": size.value * read_mb / edge_mb})  # this decoder sits on the edge
        scaled = profile.model_copy(update={"cpu": profile.cpu.model_copy(update={"last_level_cache_mb": cache})})
        below, above = (cost_model(scaled, shape).decode_ms(operators, 1, residency) for residency in residencies)
        assert below == pytest.approx(above, rel=1e-9)


def test_shared_weights_that_fit_the_cache_are_read_once():
    model = model_of("jetson-orin-nano", "fp32", 64, 16)  # 4 MB

    def milliseconds(width, shared):
        arch = Architecture(blocks=(Block(width=width, ffn_ratio=1, depth=4, shared=shared),), vocab=256)
        return model.decode_ms(arch.operators, 4, "streaming")

    assert milliseconds(256, True) < 0.8 * milliseconds(256, False)
    assert milliseconds(1024, True) == pytest.approx(milliseconds(1024, False))


def test_a_format_without_coefficients_has_memory_and_no_latency():
    model, operators = model_of("jetson-nano", "fp16", 512, 256), OPT_350M.operators
    assert not is_predicted(model.profile, "fp16") and all(is_predicted(model.profile, form) for form in FORMATS)
    assert model.on.weights_mb(operators, opening=True) == pytest.approx(weight_bytes(operators, "fp16") / 2**20)
    for predicted_cost in (model.predict, lambda ops: model.decode_ms(ops, 1, "streaming")):
        with pytest.raises(MerinoError, match="latency of fp16 cannot be predicted.* fp32, int8, int4"):
            predicted_cost(operators)


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


def test_formats_are_as_fast_as_the_cores_kernels():
    """With dot products prompts in int8 and int4 take less than half of float32's time, and without less than three
    quarters, by kernels of this project. Decoding is faster on both."""
    for board, least, most in (("raspberry-pi-5", 0.3, 0.5), ("raspberry-pi-4", 0.6, 0.75)):
        models = [model_of(board, form, 512, 256) for form in FORMATS]
        fp32, int8, int4 = (model.predict(OPT_350M.operators, {}) for model in models)
        assert all(least < predicted.prefill_ms / fp32.prefill_ms < most for predicted in (int8, int4))
        assert int8.decode_ms < 0.45 * fp32.decode_ms and int4.decode_ms < 0.9 * int8.decode_ms


# ms of a decode step of 135 M weights, all read once: what reading and computing take one
# beside the other, and one after the other (counted instructions, modeled cycles, published bandwidths).
TIMES = {
    "raspberry-pi-zero-2w": {"fp32": (284, 313), "int8": (71, 83), "int4": (40, 56)},
    "raspberry-pi-4": {"fp32": (112, 118), "int8": (28, 32), "int4": (16, 19)},
}


@pytest.mark.parametrize("board", TIMES)
def test_estimates_without_dotprod_are_those_of_the_cycles(board):
    """Of one matrix, so that launches and rows do not count; at the bandwidth of two threads, which is a fifth more."""
    profile = BOARDS[board]
    matmul = linear(13_500, 10_000)
    for form, (low, high) in TIMES[board].items():
        coefficients = estimated(profile)
        results = [
            latency([matmul], form, [(1, 0)], coefficients.dialect, at).streaming_ms
            for at in by_threads(coefficients).values()
        ]
        assert 0.95 * low < min(results) < 1.25 * high, (form, results)


def test_decode_and_prefill_choose_their_own_thread_counts():
    result = model_of("raspberry-pi-5", "fp32", 512, 256).predict(OPT_350M.operators, {})
    assert (result.decode_threads, result.prefill_threads) == (2, 4)  # as published for this board


@given(decoders(), st.integers(0, 900))
def test_amounts_are_never_negative(arch, past):
    for op, precision, tokens in itertools.product(arch.operators, FORMATS, (1, 64)):
        for dialect in ("fused", "portable", "no-dotprod"):
            assert all(amount >= 0 for amount in amounts(op, precision, tokens, past, dialect).values())
