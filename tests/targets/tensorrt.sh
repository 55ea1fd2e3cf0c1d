#!/bin/sh
# NVIDIA's parser and builder of plans, which need no GPU, in a folder of their own: tensorrt.sh FOLDER PYTHON
# TensorRT-RTX from the package index, x86-64 Linux: 88 MB, 225 MB on disk. Under NVIDIA's license, which is in the
# folder: for development and tests; nothing of it may be passed on. What is there already is not fetched again.
set -eu

root=$1
python=$2
version=1.6.1.120
packages="tensorrt_rtx_cu12_bindings==$version tensorrt_rtx_cu12_libs==$version"
recipe="$packages $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"

if [ "$(cat "$root/recipe" 2>/dev/null)" = "$recipe" ]; then
    echo "tensorrt: $root is ready"
    exit 0
fi

# Built beside its place and then moved there: what was interrupted is never taken for ready.
new=$root.new
rm -rf "$new"
mkdir -p "$(dirname "$root")"
trap 'rm -rf "$new"' EXIT
# shellcheck disable=SC2086 - two packages
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$new" $packages
echo "$recipe" > "$new/recipe"
rm -rf "$root"
mv "$new" "$root"
echo "tensorrt: $root is ready"
