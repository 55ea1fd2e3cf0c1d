"""Runtime, engine and execution contexts: a plan's graph, run by ONNX Runtime over device memory when its stream is
synchronized."""
import json

import numpy as np

from tests.tensorrt_stand_in.building import PLAN, numpy_type, open_session
from tests.tensorrt_stand_in.gpu import GARBAGE, Fault

ALIGNMENT = 256
SESSIONS = {}  # by path: opening one takes most of a test's time


def session_of(path):
    if path not in SESSIONS:
        SESSIONS[path] = open_session(path)
    return SESSIONS[path]


def running_classes(gpu, module, old):
    class Runtime:
        def __init__(self, logger):
            assert logger.initialized
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            data = bytes(serialized_engine)
            plan = json.loads(data[len(PLAN):].decode("utf-8")) if data.startswith(PLAN) else {}
            if (plan.get("gpu"), plan.get("version")) != (gpu.name, module.__version__):
                self._logger.log(module.ILogger.ERROR, "The engine plan file is not compatible with this version of "
                                 "TensorRT, or was generated on another device")
                return None
            try:
                with gpu.lock:
                    gpu.entered("deserialize")
                    return ICudaEngine(self, plan, gpu.allocate(max(1, plan["weight_bytes"]), "trt"))
            except Fault as fault:
                self._logger.log(module.ILogger.ERROR, "Error Code 1: Cuda Runtime ({})".format(fault.code))
                return None

    class ICudaEngine:
        def __init__(self, runtime, plan, weights):
            self._runtime, self.plan, self._weights, self.contexts = runtime, plan, weights, []
            self.device_memory_size = plan["scratch"]
            self.num_optimization_profiles = len(plan["profiles"])
            self.ports = {name: (module.DataType[dtype], tuple(shape), True) for name, dtype, shape in plan["inputs"]}
            self.ports.update((name, (module.DataType[dtype], tuple(shape), False))
                              for name, dtype, shape in plan["outputs"])
            self.names = list(self.ports)

        def __del__(self):
            if hasattr(self, "_weights"):
                with gpu.lock:
                    gpu.blocks.pop(self._weights, None)

        def create_execution_context_without_device_memory(self):
            try:
                with gpu.lock:
                    gpu.entered("create context")
            except Fault:
                return None
            return IExecutionContext(self)

        if old:
            num_bindings = property(lambda self: len(self.names) * self.num_optimization_profiles)

            def get_binding_name(self, index):
                profile, place = divmod(index, len(self.names))
                return self.names[place] + (" [profile {}]".format(profile) if profile else "")

            def get_binding_dtype(self, index):
                return self.ports[self.names[index % len(self.names)]][0]

            def get_binding_shape(self, index):
                return self.ports[self.names[index % len(self.names)]][1]

            def binding_is_input(self, index):
                return self.ports[self.names[index % len(self.names)]][2]
        else:
            num_io_tensors = property(lambda self: len(self.names))

            def get_tensor_name(self, index):
                return self.names[index]

            def get_tensor_dtype(self, name):
                return self.ports[name][0]

            def get_tensor_shape(self, name):
                return self.ports[name][1]

            def get_tensor_mode(self, name):
                return module.TensorIOMode.INPUT if self.ports[name][2] else module.TensorIOMode.OUTPUT

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self.device_memory, self._profile = engine, None, None
            self._shapes, self._addresses, self._ran = {}, {}, set()
            engine.contexts.append(self._use())
            if not any(use["profile"] == 0 for use in engine.contexts if use is not self._used):
                self._choose(0)  # as the real one does

        def _use(self):
            self._used = {"profile": None}
            return self._used

        def __del__(self):
            if hasattr(self, "_used"):
                self._used["profile"] = None

        def _choose(self, profile):
            self._profile = self._used["profile"] = profile
            self._shapes = {}

        def set_optimization_profile_async(self, profile_index, stream_handle):
            engine = self._engine
            taken = old and any(use["profile"] == profile_index for use in engine.contexts if use is not self._used)
            if taken or not 0 <= profile_index < engine.num_optimization_profiles:
                engine._runtime._logger.log(module.ILogger.ERROR, "Profile {} has been chosen by another "
                                            "IExecutionContext".format(profile_index))
                return False
            try:
                with gpu.lock:
                    gpu.entered("profile")
                    gpu.put(stream_handle, "a change of profile", lambda: None)
            except Fault:
                return False
            if profile_index != self._profile:
                self._choose(profile_index)
            return True

        def _set_shape(self, name, shape):
            dtype, static, is_input = self._engine.ports[name]
            bounds = self._engine.plan["profiles"][self._profile].get(name) if self._profile is not None else None
            least, most = (bounds[0], bounds[2]) if bounds else (static, static)
            if not is_input or len(shape) != len(static) or any(
                    not a <= axis <= b for a, axis, b in zip(least, shape, most)):
                self._engine._runtime._logger.log(module.ILogger.ERROR, "{}: {} is outside of profile {}".format(
                    name, tuple(shape), self._profile))
                return False
            self._shapes[name] = tuple(shape)
            return True

        if old:
            def set_binding_shape(self, binding, shape):
                profile, place = divmod(binding, len(self._engine.names))
                if profile != self._profile:
                    return False
                return self._set_shape(self._engine.names[place], shape)

            def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
                count = len(self._engine.names)
                if len(bindings) != count * self._engine.num_optimization_profiles or self._profile is None:
                    gpu.violate("a list of {} bindings".format(len(bindings)))
                    return False
                own = bindings[self._profile * count:(self._profile + 1) * count]
                return self._enqueue(dict(zip(self._engine.names, own)), stream_handle)
        else:
            def set_input_shape(self, name, shape):
                return self._set_shape(name, shape)

            def set_tensor_address(self, name, memory):
                if memory % ALIGNMENT:
                    return False
                self._addresses[name] = memory
                return True

            def execute_async_v3(self, stream_handle):
                return self._enqueue(dict(self._addresses), stream_handle)

        def _enqueue(self, addresses, stream_handle):
            """What the real one checks, it refuses; at the rest it would crash or compute garbage."""
            logger = self._engine._runtime._logger
            try:
                with gpu.lock:
                    gpu.entered("enqueue")
                    regions = self._regions(addresses)
                    stream = gpu.stream(stream_handle, "an enqueue")
                    shapes = tuple(sorted(self._shapes.items()))
                    if stream.captured is not None and shapes not in self._ran:
                        stream.capture_broken = True
                        gpu.violate("a capture before a run of this shape")
                    self._ran.add(shapes)
                    gpu.put(stream_handle, "an enqueue", lambda: self._execute(regions))
                    return True
            except Fault as fault:
                logger.log(module.ILogger.ERROR, "enqueue: CUDA error {}".format(fault.code))
            except ValueError as error:
                logger.log(module.ILogger.ERROR, "enqueue: {}".format(error))
            return False

        def _shape_of(self, name):
            """Of a port now: an open axis of an output is as long as the ids are."""
            dtype, static, is_input = self._engine.ports[name]
            if -1 not in static:
                return static
            if is_input and name not in self._shapes:
                raise ValueError("input {} has no shape".format(name))
            length = next(shape[1] for port, shape in self._shapes.items() if -1 in self._engine.ports[port][1])
            return self._shapes.get(name) or tuple(length if axis < 0 else axis for axis in static)

        def _regions(self, addresses):
            """(view, shape, type, is_input) of each port's memory."""
            scratch = gpu.view(self.device_memory or 0, self._engine.device_memory_size, "device", "scratch memory")
            results = {"": (scratch, scratch.shape, np.dtype("uint8"), False)}
            for name, (dtype, _, is_input) in self._engine.ports.items():
                address = addresses.get(name)
                if not address:
                    raise ValueError("{} has no address".format(name))
                if address % ALIGNMENT:
                    gpu.violate("{} lies at {:#x}, which is not aligned".format(name, address))
                shape, kind = self._shape_of(name), numpy_type(dtype.name)
                size = int(np.prod(shape)) * kind.itemsize
                results[name] = (gpu.view(address, size, "device", name), shape, kind, is_input)
            written = [name for name, region in results.items() if not region[3]]
            for name in written:
                for other, region in results.items():
                    if other != name and np.shares_memory(region[0], results[name][0]):
                        gpu.violate("{} and {} share memory".format(name or "scratch", other or "scratch"))
            return results

        def _execute(self, regions):
            session = session_of(self._engine.plan["path"])
            types = {port.name: port.type for port in session.get_inputs()}
            feeds = {}
            for name, (view, shape, kind, is_input) in regions.items():
                if is_input:
                    array = view.view(kind).reshape(shape)
                    feeds[name] = array.astype(np.int64) if types[name] == "tensor(int64)" else array
            regions[""][0][:] = GARBAGE
            if gpu.speeds:
                tokens = max(shape[1] for _, shape, _, is_input in regions.values() if is_input)
                gpu.elapsed_s += gpu.speeds.run_s(self._engine.plan, tokens)
            outputs = [port.name for port in session.get_outputs()]
            for name, values in zip(outputs, session.run(outputs, feeds)):
                view, shape, kind, _ = regions[name]
                assert values.shape == tuple(shape), (name, values.shape, shape)
                view[:] = np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8)

    return [Runtime, ICudaEngine, IExecutionContext]
