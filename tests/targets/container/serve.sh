#!/bin/sh
# Builds an image and runs it by its own user, command and health check:
# serve.sh BASE.tar FOLDER FILE WORK EMULATED KEY VOLUME...
# FOLDER: the Containerfile FILE, and wheels. In namespaces of its own (users, mounts, network, processes), so that the
# port is the image's and nothing of this machine is changed. Prints the user of the server, what the health check said,
# and what a client got.
set -eu
base=$1 folder=$2 file=$3 work=$4 emulated=$5 key=$6
shift 6
mkdir -p "$work/formats" "$work/tmp"
mount -t proc container /proc
ip link set lo up
export TMPDIR="$work/tmp"
architecture=
if [ "$emulated" = yes ]; then
    "$(dirname "$0")/../boards/parts.sh" formats "$work/formats"
    architecture="--platform linux/arm64"
fi
run() { buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }

# shellcheck disable=SC2086  # no word, or two
made=$(run from $architecture scratch)
run add --quiet "$made" "$base" / > /dev/null
run commit --quiet --rm "$made" localhost/base > /dev/null
# BASE is the server's, BUILD_FROM the add-on's.
# shellcheck disable=SC2086
run build --quiet --isolation chroot --network host --pull=never --format docker $architecture --file "$folder/$file" \
    --build-arg BASE=localhost/base --build-arg BUILD_FROM=localhost/base \
    --build-arg PIP_OPTIONS="--no-index --no-compile" --tag localhost/merino-server "$folder" > /dev/null
run inspect --type image localhost/merino-server > "$work/image.json"

# What an engine does with it: ENTRYPOINT and CMD as USER, then HEALTHCHECK in the same container.
# shellcheck disable=SC2086
server=$(run from --pull=never $architecture localhost/merino-server)
words() { python3 "$(dirname "$0")/words.py" "$work/image.json" "$1"; }
volumes=$(printf -- '--volume %s ' "$@")
# shellcheck disable=SC2086  # several words
inside() { run run --isolation chroot --network host $volumes "$server" -- "$@"; }
eval "inside $(words server)" > "$work/server.log" 2>&1 &
healthy=no
for _ in $(seq 60); do
    if eval "inside $(words health)" > /dev/null 2>&1; then
        healthy=yes
        break
    fi
    sleep 2
done
for process in /proc/[0-9]*; do
    case $(tr '\0' ' ' < "$process/cmdline" 2> /dev/null) in
        *"/opt/merino/bin/merino serve "*) case $(cat "$process/comm") in buildah | sh) ;; *) stat -c %u "$process" ;; esac ;;
    esac
done | sort -u
[ $healthy = no ] || echo healthy
python3 "$(dirname "$0")/words.py" ask http://127.0.0.1:8080/v1/completions "$key"
