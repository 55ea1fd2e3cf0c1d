"""Boards made of shipped ones, for tests that search many times."""


def of_two_cores(profile):
    """The board with two of its cores. A search tries every pair of thread counts: 4 pairs in place of 9."""
    two = {"update": {"value": 2}}
    cpu, speed = profile.cpu, profile.performance.onnxruntime
    return profile.model_copy(update={
        "cpu": cpu.model_copy(update={"cores": cpu.cores.model_copy(**two)}),
        "performance": profile.performance.model_copy(update={"onnxruntime": speed.model_copy(update={
            name: getattr(speed, name).model_copy(**two) for name in ("decode_threads", "prefill_threads")
        })}),
    })  # fmt: skip
