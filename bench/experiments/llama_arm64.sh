#!/bin/sh
# llama_step.c with llama.cpp, from the sources of llama-cpp-python, as a static program for Arm cores without dotprod:
# llama_arm64.sh PYTHON FOLDER. Needs Debian's g++-aarch64-linux-gnu, CMake and ninja; about 6 CPU minutes.
set -eu

python=$1
folder=$2
here=$(cd "$(dirname "$0")" && pwd)

if [ ! -d "$folder/sources" ]; then
    mkdir -p "$folder"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
        --dest "$folder" "llama-cpp-python>=0.3.16,<0.4"
    mkdir "$folder/sources.part"
    tar -xf "$folder"/llama_cpp_python-*.tar.gz -C "$folder/sources.part" --strip-components=1
    mv "$folder/sources.part" "$folder/sources"
fi
llama=$folder/sources/vendor/llama.cpp
if [ ! -f "$folder/build/src/libllama.a" ]; then
    cmake -G Ninja -S "$llama" -B "$folder/build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8-a -DGGML_OPENMP=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF >/dev/null
    ninja -C "$folder/build" llama >/dev/null
fi
aarch64-linux-gnu-g++ -static -O2 -x c "$here/llama_step.c" -x none -I "$llama/include" -I "$llama/ggml/include" \
    -o "$folder/llama_step" "$folder/build/src/libllama.a" "$folder"/build/ggml/src/libggml.a \
    "$folder"/build/ggml/src/libggml-cpu.a "$folder"/build/ggml/src/libggml-base.a -lpthread -lm -ldl
