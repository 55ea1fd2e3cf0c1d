#!/bin/sh
# Builds the server's image and runs it by its own user, command and health check: serve.sh BASE.tar FOLDER BUNDLE WORK EMULATED
# FOLDER: Containerfile and wheels. In namespaces of its own (users, mounts, network, processes), so that the port is
# the image's and nothing of this machine is changed. Prints what the health check and a client got.
set -eu
base=$1 folder=$2 bundle=$3 work=$4 emulated=$5
mkdir -p "$work/formats" "$work/tmp"
mount -t proc container /proc
ip link set lo up
export TMPDIR="$work/tmp"
architecture=
if [ "$emulated" = yes ]; then
    "$(dirname "$0")/../boards/formats.sh" "$work/formats"
    architecture="--platform linux/arm64"
fi
run() { buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }

# shellcheck disable=SC2086  # no word, or two
made=$(run from $architecture scratch)
run add --quiet "$made" "$base" / > /dev/null
run commit --quiet --rm "$made" localhost/base > /dev/null
# shellcheck disable=SC2086
run build --quiet --isolation chroot --network host --pull=never --format docker $architecture --file "$folder/Containerfile" \
    --build-arg BASE=localhost/base --build-arg PIP_OPTIONS="--no-index --no-compile" --tag localhost/merino-server "$folder" > /dev/null
run inspect --type image localhost/merino-server > "$work/image.json"

# What an engine does with it: ENTRYPOINT and CMD as USER, then HEALTHCHECK in the same container.
# shellcheck disable=SC2086
server=$(run from --pull=never $architecture localhost/merino-server)
words() { python3 "$(dirname "$0")/words.py" "$work/image.json" "$1"; }
printf 'a-key-for-the-test\n' > "$work/keys"
chmod 644 "$work/keys"
inside() { run run --isolation chroot --network host --volume "$bundle:/bundle:ro" --volume "$work/keys:/keys:ro" "$server" -- "$@"; }
inside id -u 2> /dev/null || inside python3 -c 'import os; print(os.getuid())'
eval "inside $(words server)" > "$work/server.log" 2>&1 &
for _ in $(seq 60); do
    if eval "inside $(words health)" > /dev/null 2>&1; then
        echo healthy
        break
    fi
    sleep 2
done
python3 "$(dirname "$0")/words.py" ask http://127.0.0.1:8080/v1/completions a-key-for-the-test
