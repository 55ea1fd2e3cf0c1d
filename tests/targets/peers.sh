#!/bin/sh
# The engines that `bench --peers` measures, installed beside ours: peers.sh PYTHON STAMP
# A package without a wheel for this machine is noted in STAMP; its tests are then skipped. Any other fault ends this.
set -eu

python=$1
stamp=$2
part=$stamp.part
said=$stamp.said
trap 'rm -f "$part" "$part.wanted" "$said"' EXIT

: > "$part"
"$python" -c '
from configparser import ConfigParser

config = ConfigParser()
config.read("setup.cfg")
print(config["options.extras_require"]["peers"].strip())
' > "$part.wanted"
while read -r requirement; do
    if ! "$python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: "$requirement" 2> "$said"; then
        if grep -q Retrying "$said" || ! grep -q "No matching distribution found" "$said"; then
            cat "$said" >&2
            exit 1
        fi
        echo "no wheel of $requirement for this machine: tests of its engine are skipped" >&2
        echo "${requirement%%[<>=!~]*}" >> "$part"
    fi
done < "$part.wanted"
mv "$part" "$stamp"
