#!/bin/sh
# This machine's own apt sources of its own suite, with another suite's name in its place, into a file:
# sources.sh SUITE FILE
set -eu
host_suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    grep -qsw "$host_suite" "$file" && sed "s/\b$host_suite\b/$1/g" "$file" && echo
done >"$2" || true
[ -s "$2" ] || { echo "no apt source of this machine's suite in /etc/apt to take $1 from" >&2; exit 1; }
