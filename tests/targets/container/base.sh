#!/bin/sh
# A root file system to build the server's image on, in place of a registry's: base.sh amd64|arm64 FILE.tar
# Debian 13 with Python 3.13, unpacked and not run. Needs root, mmdebstrap and Debian's apt.
set -eu
sources=$(mktemp)
trap 'rm -f "$sources" "$2.part"' EXIT
"$(dirname "$0")/../boards/parts.sh" sources trixie "$sources"
# Debian's pip opens the list of certificates, which a script of a package that is not run would have made.
# shellcheck disable=SC2016  # for the hook's shell
list='cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt"'
packages=base-files,ca-certificates,python3,python3-venv,python3-pip-whl,libstdc++6,libgomp1,dash,coreutils
mmdebstrap --quiet --mode=root --architectures="$1" --variant=extract --format=tar \
    --extract-hook="$list" --include="$packages" trixie "$2.part" "$sources"
mv "$2.part" "$2"
