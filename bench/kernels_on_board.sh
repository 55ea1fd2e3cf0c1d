#!/bin/sh
# What the kernels of runtime/kernels take on this board: sh bench/kernels_on_board.sh > kernels.json
#
# Needs the board's C compiler (Raspberry Pi OS and JetPack have one; else apt-get install gcc libc6-dev) and a copy of this
# repository. Takes two minutes. Stop other programs first. The output is one line of JSON: send it with the board's name to where
# this project's source is published, as a report of a measurement.
# Each shape is larger than the CPU's caches, so memory is what is measured where that is slower. With llama-bench on the path
# and a model in MERINO_GGUF its decode speed stands beside.
set -eu
here=$(cd "$(dirname "$0")/../runtime/kernels" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case $(uname -m) in
aarch64) flags="-mtune=cortex-a53 -frename-registers" ;;
x86_64) flags=-march=x86-64-v3 ;;
*) echo "kernels_on_board.sh: no kernels for $(uname -m): a 64-bit system is needed" >&2 && exit 1 ;;
esac
# shellcheck disable=SC2086  # a list of words
"${CC:-cc}" -std=gnu11 -O3 -ffp-contract=off -fno-math-errno -fwrapv $flags -o "$work/check" \
    "$here/check.c" "$here"/matmul*.c "$here/attention.c" "$here/taps.c" "$here/pool.c" -lm -pthread

cores=$(getconf _NPROCESSORS_ONLN)
rows=
for count in 1 2 4; do
    [ "$count" -gt "$cores" ] || rows="$rows${rows:+, }$("$work/check" time "$count")"
done
llama=null
if command -v llama-bench >/dev/null && [ -n "${MERINO_GGUF:-}" ]; then
    llama=$(llama-bench -m "$MERINO_GGUF" -p 0 -n 64 -o json | tr -d '\n')
fi
model=$({ tr -d '\000"\\' </proc/device-tree/model; } 2>/dev/null || uname -m)
parts=$(sed -n 's/^CPU part[^0]*//p' /proc/cpuinfo | sort -u | tr '\n' ' ')
clock=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq 2>/dev/null || echo null)
printf '{"schema": 1, "board": "%s", "cpu_parts": "%s", "cores": %s, "max_khz": %s, "compiler": "%s", "times": [%s], "llama": %s}\n' \
    "$model" "${parts% }" "$cores" "$clock" "$("${CC:-cc}" -dumpfullversion)" "$rows" "$llama"
