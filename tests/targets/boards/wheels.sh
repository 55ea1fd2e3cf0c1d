#!/bin/sh
# Wheels for the boards' CPU and a version of Python into a folder, nothing that they depend on:
# wheels.sh PYTHON VERSION FOLDER WHEEL...
set -eu
python=$1 version=$2 folder=$3
shift 3
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder" \
    --implementation cp --python-version "$version" --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@"
