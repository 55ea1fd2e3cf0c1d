#!/bin/sh
# What distinguishes the emulated machine's root file system from Debian's packages: configure.sh ROOT PUBLIC_KEY
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash pi
for home in root home/pi; do
    install -d -m 0700 "$root/$home/.ssh"
    cp "$2" "$root/$home/.ssh/authorized_keys"
done
chroot "$root" chown -R pi:pi /home/pi/.ssh

echo board >"$root/etc/hostname"
echo '127.0.0.1 localhost board' >"$root/etc/hosts"
: >"$root/etc/resolv.conf" # there is no network but the way in
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id" # without one systemd takes the start for the very first

# The initrd mounts the root and sets the network up. What else takes seconds of an emulated CPU and nobody looks at:
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
for unit in dev-hugepages.mount dev-mqueue.mount e2scrub_reap.service getty.target getty-static.service \
    modprobe@.service sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount systemd-logind.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    timers.target; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
