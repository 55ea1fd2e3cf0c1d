"""The stand-in for processes that tests start: this folder's parent on PYTHONPATH makes it `import tensorrt`, and the
backend's libcudart. MERINO_STAND_IN_VERSION names the version; MERINO_STAND_IN_BROKEN a driver that is not loaded."""
import os
import sys

sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4)))

from merino_runtime.backends import cuda as opener  # noqa: E402
from tests.tensorrt_stand_in import RUNTIMES, Gpu, open_library_of, tensorrt_module  # noqa: E402

__version__ = os.environ.get("MERINO_STAND_IN_VERSION", "8.2.1.8")
GPU = Gpu(driver=0 if os.environ.get("MERINO_STAND_IN_BROKEN") else 12060)
GPU.runtime = RUNTIMES[__version__]
globals().update((name, value) for name, value in vars(tensorrt_module(GPU, __version__)).items()
                 if not name.startswith("__"))
opener.open_library = open_library_of(GPU)
