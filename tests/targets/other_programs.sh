#!/bin/sh
# Programs that are not ours and take our graphs, in a folder of their own: other_programs.sh PYTHON FOLDER
# What cannot be had is said, and does not stay: its test is skipped.
set -eu

python=$1
folder=$2

rm -rf "$folder"
mkdir "$folder"

# optimum asks for an older transformers than ours. The rest, torch above all, is taken from our environment, and pip says
# that ours has then the wrong version: that is shown only where the installation fails.
"$python" -m venv "$folder/optimum"
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$folder/optimum/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
if ! "$folder/optimum/bin/python" -m pip install --quiet --disable-pip-version-check \
        'optimum-onnx[onnxruntime]==0.1.*' 'transformers<4.58' 2> "$folder/said"; then
    cat "$folder/said" >&2
    echo "no optimum here: its test is skipped" >&2
    rm -rf "$folder/optimum"
fi

# Without scripts: onnxruntime-node ships its CPU build, and its script fetches one for GPUs.
if ! command -v npm > /dev/null || ! npm install --silent --no-audit --no-fund --ignore-scripts \
        --prefix "$folder/node" '@huggingface/transformers@^4.3'; then
    echo "no npm, or no transformers.js here: its test is skipped" >&2
    rm -rf "$folder/node"
fi
