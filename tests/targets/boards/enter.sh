#!/bin/sh
# Runs a command as on a board, its children too: enter.sh ROOT CPU FOLDER COMMAND...
# ROOT is what rootfs.sh made and stays as it is: what the command writes is gone with it, but in FOLDER, which it sees
# under its own path and where it starts. The namespaces are its own, so nothing of this machine is changed.
set -eu

if [ "$1" != inside ]; then
    # The namespaces' first process is not the command: signals that it gets from itself would not end it.
    exec unshare --user --map-root-user --mount --pid --fork --kill-child "$0" inside "$@"
fi
shift
root=$1 cpu=$2 folder=$3
shift 3

space=$root/tmp
mount -t tmpfs board "$space"
mkdir "$space/upper" "$space/work" "$space/board" "$space/formats"
mount -t overlay board -o "lowerdir=$root,upperdir=$space/upper,workdir=$space/work" "$space/board"
mkdir -p "$space/board/proc" "$space/board/sys" "$space/board/tmp" "$space/board$folder"
"$(dirname "$0")/parts.sh" formats "$space/formats"
mount -t proc board "$space/board/proc"
mount --rbind /sys "$space/board/sys"
mount --rbind /dev "$space/board/dev"
mount --bind "$folder" "$space/board$folder"

status=0
# shellcheck disable=SC2016  # expanded inside
chroot "$space/board" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="$cpu" \
    /bin/sh -c 'cd "$1" && shift && exec "$@"' board "$folder" "$@" || status=$?
exit "$status"
