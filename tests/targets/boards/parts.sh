#!/bin/sh
# What the scripts that make root file systems share: parts.sh formats|sources|wheels WORD...
set -eu
part=$1
shift

case $part in
formats) # FOLDER: the kernel hands executables of 64-bit Arm to the emulator for as long as FOLDER is mounted. In a mount
    # namespace of one's own user namespace.
    # The bytes by which such an executable is told, those of its ABI left out. P: argv[0] is kept, which a virtual
    # environment is found by. F: the emulator is opened now, since it is not in the root file system of the executable.
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    mount -t binfmt_misc board "$1"
    printf ':board:M::%s:%s:%s:PF\n' "$magic" "$mask" "$(command -v qemu-aarch64)" >"$1/register"
    ;;
sources) # SUITE FILE: this machine's own apt sources of its own suite, with another suite's name in its place, into a file
    host_suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        grep -qsw "$host_suite" "$file" && sed "s/\b$host_suite\b/$1/g" "$file" && echo
    done >"$2" || true
    [ -s "$2" ] || { echo "no apt source of this machine's suite in /etc/apt to take $1 from" >&2; exit 1; }
    ;;
wheels) # PYTHON VERSION FOLDER WHEEL...: wheels for the boards' CPU and a version of Python, nothing that they depend on
    python=$1 version=$2 folder=$3
    shift 3
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder" \
        --implementation cp --python-version "$version" --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@"
    ;;
esac
