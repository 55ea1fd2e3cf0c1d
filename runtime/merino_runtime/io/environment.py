"""Environment variables that must be set before numpy or onnxruntime is imported. A value that the user set is kept."""
import os


def prepare_environment() -> None:
    """Set the variables. The import of `merino_runtime` calls this, so it precedes any import of numpy or
    onnxruntime."""
    # onnxruntime 1.32 on Linux writes a device id and a database into the user's cache when it is imported, and sends
    # events over HTTPS.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if hasattr(os, "uname") and os.uname().machine == "aarch64":  # the module `platform` takes 30 ms
        # OpenBLAS in numpy 1.19.5, the last for Python 3.6, misreads the Jetson Nano's CPU and dies of an illegal
        # instruction at import. The generic kernels cost nothing: the runtime multiplies no matrices in numpy.
        os.environ.setdefault("OPENBLAS_CORETYPE", "ARMV8")
