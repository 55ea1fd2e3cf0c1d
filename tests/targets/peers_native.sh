#!/bin/sh
# llama.cpp from the sources of llama-cpp-python, built for this machine: peers_native.sh PYTHON FOLDER
# Needs a C++ compiler; pip brings CMake.
set -eu

python=$1
folder=$2

if [ ! -f "$folder/llama_cpp/llama_cpp.py" ]; then
    echo "building llama.cpp for this machine: about 8 CPU minutes" >&2
    rm -rf "$folder.part"
    CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$(getconf _NPROCESSORS_ONLN) \
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
        --target "$folder.part" "llama-cpp-python>=0.3.16,<0.4"
    rm -rf "$folder"
    mv "$folder.part" "$folder"
fi
