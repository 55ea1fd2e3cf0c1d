#!/bin/sh
# A whole machine of the boards' kind, arm64 Debian 12 with systemd and sshd, for qemu-system-aarch64: build.sh FOLDER
# FOLDER gets root.img, kernel, initrd, and the keys of both ends; it is replaced where it is not what these files say.
# Needs root and Debian's apt; done at once where it is there. The packages are configured by emulated processes, which
# takes minutes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
boards=$here/../boards
folder=$1
suite=bookworm
packages=python3,python3-venv,libstdc++6,libgomp1,openssh-server,systemd-sysv
kernel=linux-image-cloud-arm64 # of linux-image-arm64, what a virtual machine needs; ext4 is built in
recipe=$(cat "$0" "$here/init" "$here/configure.sh" "$boards/parts.sh" | cksum)

stop() {
    echo "vm: $1" >&2
    exit 1
}

lacks() { # whether one of these programs is not here; a user's PATH may leave out where root's are
    for program in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 0
    done
    return 1
}

running="qemu-system-aarch64 fdtput ssh scp sfdisk mkfs.vfat e2fsck debugfs" # of the tests
if [ "$(cat "$folder/recipe" 2>/dev/null)" = "$recipe" ] && ! lacks $running; then
    echo "vm: $folder is ready"
    exit 0
fi
[ "$(id -u)" = 0 ] || stop "needs root to make the file system of another machine"
command -v apt-get >/dev/null || stop "needs apt-get, to take Debian's packages"
if lacks $running qemu-aarch64 mmdebstrap arch-test mke2fs cpio ssh-keygen unshare; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends qemu-user qemu-system-arm mmdebstrap \
        arch-test e2fsprogs cpio device-tree-compiler openssh-client fdisk dosfstools util-linux >/dev/null
fi

# Built beside its place and then moved there: what was interrupted is never taken for ready.
new=$folder.new
rm -rf "$new"
mkdir -p "$new"
work=$(mktemp -d)
trap 'rm -rf "$work" "$new"' EXIT
"$boards/parts.sh" sources "$suite" "$work/sources"
ssh-keygen -q -t ed25519 -N "" -C tests -f "$new/key"

echo "vm: the kernel"
mmdebstrap --quiet --mode=root --arch=arm64 --variant=extract --include="$kernel,busybox-static" "$suite" \
    "$work/kernel" "$work/sources"
cp "$work"/kernel/boot/vmlinuz-* "$new/kernel"
mkdir -p "$work/initrd/bin" "$work/initrd/dev" "$work/initrd/proc" "$work/initrd/root" "$work/initrd/modules"
cp "$work/kernel/bin/busybox" "$work/initrd/bin/"
ln -s busybox "$work/initrd/bin/sh"
find "$work/kernel/lib/modules" \( -name 'virtio*.ko' -o -name '*failover.ko' \) -exec cp {} "$work/initrd/modules" ';'
install -m 0755 "$here/init" "$work/initrd/init"
(cd "$work/initrd" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$new/initrd"

echo "vm: the root file system"
# shellcheck disable=SC2016  # expanded inside
unshare --user --map-users=0:0:65536 --map-groups=0:0:65536 --mount --pid --fork --kill-child --mount-proc sh -euc '
    formats=$1
    shift
    mkdir "$formats"
    "$0" formats "$formats"
    exec "$@"
' "$boards/parts.sh" "$work/formats" \
    mmdebstrap --mode=root --arch=arm64 --variant=minbase --include="$packages" \
    --customize-hook="'$here/configure.sh' \"\$1\" '$new/key.pub'" "$suite" "$work/root" "$work/sources" \
    >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; stop "mmdebstrap failed"; }
cp "$work/root/etc/ssh/ssh_host_ed25519_key.pub" "$new/host_key.pub"
mke2fs -q -t ext4 -d "$work/root" "$new/root.img" 2G

echo "$recipe" >"$new/recipe"
rm -rf "$folder"
mv "$new" "$folder"
echo "vm: $folder is made, $(du -sm "$folder" | cut -f1) MB"
