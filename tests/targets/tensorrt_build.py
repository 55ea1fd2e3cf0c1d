"""One plan by NVIDIA's TensorRT-RTX, in a process of its own: tensorrt_build.py ROOT MODEL LENGTH...

A profile for each number of new tokens. Prints one JSON object: whether the parser took the graph, what it said of
which operators, the graph's inputs, and the bytes of the plan, 0 where the builder made none. Nothing is run: that
needs a GPU.
"""

import json
import sys
from pathlib import Path


def main(root: str, model: str, *lengths: str) -> None:
    sys.path.insert(0, root)
    import tensorrt_rtx_libs  # noqa: F401 - loads the libraries that the bindings want
    import tensorrt_rtx_bindings as trt  # isort: skip

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    result = {"version": trt.__version__, "parsed": parser.parse_from_file(model), "errors": [], "plan_bytes": 0}
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    result["errors"] = [[error.node_operator(), error.desc()] for error in errors]
    if result["parsed"]:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        result["inputs"] = [[each.name, str(each.dtype).split(".")[-1], list(each.shape)] for each in inputs]
        config = builder.create_builder_config()
        for length in map(int, lengths):
            profile = builder.create_optimization_profile()
            for each in inputs:
                shape = [length if dim < 0 else dim for dim in each.shape]
                if -1 in each.shape:
                    profile.set_shape(each.name, shape, shape, shape)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        result["plan_bytes"] = plan.nbytes if plan else 0
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], str(Path(sys.argv[2]).resolve()), *sys.argv[3:])
