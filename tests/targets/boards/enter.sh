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

# The bytes by which the kernel tells an executable of 64-bit Arm, those of its ABI left out. P: argv[0] is kept, which
# a virtual environment is found by. F: the emulator is opened now, since it is not in ROOT.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
emulator=$(command -v qemu-aarch64)

space=$root/tmp
mount -t tmpfs board "$space"
mkdir "$space/upper" "$space/work" "$space/board" "$space/formats"
mount -t overlay board -o "lowerdir=$root,upperdir=$space/upper,workdir=$space/work" "$space/board"
mkdir -p "$space/board/proc" "$space/board/sys" "$space/board/tmp" "$space/board$folder"
mount -t binfmt_misc board "$space/formats" # what is registered lasts as long as this is mounted
printf ':board:M::%s:%s:%s:PF\n' "$magic" "$mask" "$emulator" >"$space/formats/register"
mount -t proc board "$space/board/proc"
mount --rbind /sys "$space/board/sys"
mount --rbind /dev "$space/board/dev"
mount --bind "$folder" "$space/board$folder"

status=0
# shellcheck disable=SC2016  # expanded inside
chroot "$space/board" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="$cpu" \
    /bin/sh -c 'cd "$1" && shift && exec "$@"' board "$folder" "$@" || status=$?
exit "$status"
