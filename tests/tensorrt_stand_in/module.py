"""The Python module `tensorrt` of the stand-in, of version 8.2 or 10.3: the classes and methods that the backend uses,
with the parameters' names of the real ones."""
import enum
import types

from tests.tensorrt_stand_in.building import building_classes
from tests.tensorrt_stand_in.running import running_classes

LAYER_TYPES = ("CONVOLUTION", "ACTIVATION", "SOFTMAX", "CONCATENATION", "ELEMENTWISE", "UNARY", "SHUFFLE", "REDUCE",
               "MATRIX_MULTIPLY", "CONSTANT", "IDENTITY", "SLICE", "GATHER", "SELECT")


def tensorrt_module(gpu, version):
    """A module object; several may stand beside each other."""
    old = version.startswith("8.")
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    module.Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    module.DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL" + ("" if old else " INT64"))
    module.float32, module.float16 = module.DataType.FLOAT, module.DataType.HALF
    module.BuilderFlag = enum.Enum("BuilderFlag", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS")
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", start=0)
    module.LayerType = enum.Enum("LayerType", LAYER_TYPES)
    module.ElementWiseOperation = enum.Enum("ElementWiseOperation", "SUM PROD SUB DIV POW EQUAL GREATER LESS")
    if not old:
        module.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
        module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM")
    module.ILogger = type("ILogger", (ILogger,), {severity.name: severity for severity in module.Severity})
    for result in (*building_classes(gpu, module, old), *running_classes(gpu, module, old)):
        setattr(module, result.__name__, result)
    return module


class ILogger:
    """To derive from. The real one ends the process where a derived class does not call `__init__`."""

    def __init__(self):
        self.initialized = True

    def log(self, severity, msg):
        raise NotImplementedError
