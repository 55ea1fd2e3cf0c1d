#!/bin/sh
# A root file system of the boards' kind, arm64 Debian 12 with Python 3.11, for `qemu-aarch64 -L`
# and enter.sh: rootfs.sh FOLDER PYTHON
# Nothing of it is run while it is made. FOLDER is replaced where it is not what this file says; PYTHON is one with pip.
# Needs root and Debian's apt, the first time; done at once where it is there.
set -eu

root=$1
python=$2
suite=bookworm
packages=python3,libstdc++6,libgomp1,dash,coreutils
wheels="numpy==2.4.6 onnxruntime==1.32.0 tokenizers==0.23.3"
recipe="$suite $packages $wheels"

if [ "$(cat "$root/recipe" 2>/dev/null)" = "$recipe" ] && command -v qemu-aarch64 >/dev/null; then
    echo "boards: $root is ready"
    exit 0
fi

stop() {
    echo "boards: $1" >&2
    exit 1
}

if ! command -v qemu-aarch64 >/dev/null || ! command -v mmdebstrap >/dev/null; then
    command -v apt-get >/dev/null || stop "needs qemu-aarch64 and mmdebstrap, and there is no apt-get to install them"
    [ "$(id -u)" = 0 ] || stop "needs root: apt-get install --no-install-recommends qemu-user mmdebstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends qemu-user mmdebstrap >/dev/null
fi
[ "$(id -u)" = 0 ] || stop "needs root to unpack a root file system into $root"

# Built beside its place and then moved there: what was interrupted is never taken for ready.
new=$root.new
rm -rf "$new"
mkdir -p "$(dirname "$root")"
work=$(mktemp -d)
trap 'rm -rf "$work" "$new"' EXIT

"$(dirname "$0")/parts.sh" sources "$suite" "$work/sources"

mmdebstrap --quiet --mode=root --arch=arm64 --variant=extract --include="$packages" "$suite" "$new" "$work/sources"

# shellcheck disable=SC2086  # a list of words
"$(dirname "$0")/parts.sh" wheels "$python" 3.11 "$new/opt/site" $wheels

echo "$recipe" >"$new/recipe"
rm -rf "$root"
mv "$new" "$root"
echo "boards: $root is made, $(du -sm "$root" | cut -f1) MB"
