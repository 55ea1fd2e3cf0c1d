#!/bin/sh
# This machine's own apt sources of its own suite, with another suite's name in its place, on stdout: sources.sh SUITE
set -eu
host_suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    grep -qsw "$host_suite" "$file" && sed "s/\b$host_suite\b/$1/g" "$file" && echo
done || true
