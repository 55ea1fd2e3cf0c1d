#!/bin/sh
# Earlier versions of ONNX Runtime for the emulated boards, beside what rootfs.sh made: older.sh FOLDER PYTHON
# Each is FOLDER/opt/onnxruntime-VERSION. Debian 12's Python has no wheel of 1.10, so that one lies in a root file system
# of Debian 11, the folder bullseye beside FOLDER. Done at once where all are there.
set -eu

root=$1
python=$2
older=$(dirname "$root")/bullseye

# wheels FOLDER PYTHON_VERSION WHEEL...: built beside its place and then moved there
wheels() {
    [ ! -d "$1" ] || return 0
    folder=$1 version=$2
    shift 2
    rm -rf "$folder.new"
    "$(dirname "$0")/parts.sh" wheels "$python" "$version" "$folder.new" "$@"
    mv "$folder.new" "$folder"
}

wheels "$root/opt/onnxruntime-1.23.2" 3.11 onnxruntime==1.23.2
wheels "$root/opt/onnxruntime-1.19.2" 3.11 onnxruntime==1.19.2
wheels "$root/opt/onnxruntime-1.16.3" 3.11 onnxruntime==1.16.3 numpy==1.26.4

if [ ! -d "$older" ]; then
    new=$older.new
    work=$(mktemp -d)
    trap 'rm -rf "$work" "$new"' EXIT
    rm -rf "$new"
    # Debian 11 gets no updates for arm64 any more: the main archive alone.
    "$(dirname "$0")/parts.sh" sources bullseye "$work/all"
    sed '/security.*bullseye/d; /^deb.*bullseye-updates/d; s/ bullseye-updates//' "$work/all" |
        awk -v RS= -v ORS='\n\n' '!/-security/' >"$work/sources"
    mmdebstrap --quiet --mode=root --arch=arm64 --variant=extract --include=python3,libstdc++6,libgomp1 bullseye "$new" \
        "$work/sources"
    mv "$new" "$older"
fi
wheels "$older/opt/onnxruntime-1.10.0" 3.9 onnxruntime==1.10.0 numpy==1.19.5 tokenizers==0.22.2
