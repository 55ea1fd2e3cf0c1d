#!/bin/sh
# The kernels' library for one kind of CPU: build.sh aarch64|x86_64 FILE [FLAGS OF THE COMPILER...]
# Debian 13's gcc 14 (gcc-14, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross) builds the same bytes each time. CC names
# another compiler.
# -mtune=cortex-a53 serves all cores without dotprod: tuned for Cortex-A72, an A53 takes a third longer.
set -eu
machine=$1 out=$2
shift 2
case $machine in
aarch64) compiler=${CC:-aarch64-linux-gnu-gcc} flags="-mtune=cortex-a53 -mno-outline-atomics -frename-registers" ;;
x86_64) compiler=${CC:-gcc} flags=-march=x86-64-v3 ;;
*) echo "build.sh: $machine is not known: aarch64 or x86_64" >&2 && exit 1 ;;
esac
here=$(dirname "$0")
# shellcheck disable=SC2086  # a list of words
"$compiler" -std=gnu11 -O3 -ffp-contract=off -fno-math-errno -fwrapv -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror \
    $flags "$@" -Wl,--build-id=none,-z,relro,-z,now,-s -o "$out" "$here"/matmul*.c "$here/attention.c" "$here/pool.c" \
    "$here/taps.c" "$here/operators.c"
