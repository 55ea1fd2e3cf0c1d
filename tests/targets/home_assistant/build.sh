#!/bin/sh
# Home Assistant in a root file system of its own, Debian forky with Python 3.14, for `chroot`: build.sh FOLDER
# What integrations need is read from their manifests, as Home Assistant does it when it starts. Needs root and 1.7 GB.
set -eu

root=$1
version=2026.11.0
suite=forky
packages=python3.14,python3.14-venv,python3.14-dev,g++,ca-certificates # two packages are compiled
integrations="ai_task analytics assist_pipeline backup camera cloud conversation ffmpeg frontend hassio image_upload infrared
llama_cpp marketplace ollama radio_frequency recorder stream tts wyoming zeroconf"
recipe="$version $suite $packages"

if [ "$(cat "$root/recipe" 2>/dev/null)" = "$recipe" ]; then
    echo "home-assistant: $root is ready"
    exit 0
fi

stop() {
    echo "home-assistant: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || stop "needs root to make a root file system in $root"
command -v mmdebstrap >/dev/null || stop "needs mmdebstrap: apt-get install mmdebstrap"

# Built beside its place and then moved there: what was interrupted is never taken for ready.
new=$root.new
rm -rf "$new"
mkdir -p "$(dirname "$root")"
work=$(mktemp -d)
trap 'rm -rf "$work" "$new"' EXIT

"$(dirname "$0")/../boards/parts.sh" sources "$suite" "$work/sources"

# A mirror of a suite that is not released may be a snapshot, whose signed index is over its date.
mmdebstrap --quiet --mode=root --aptopt='Acquire::Check-Valid-Until "false"' --variant=minbase --include="$packages" \
    "$suite" "$new" "$work/sources"
cp /etc/resolv.conf "$new/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$new/etc/ssl/certs/ca-certificates.crt"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_ROOT_USER_ACTION=ignore
site=/ha/lib/python3.14/site-packages
chroot "$new" python3.14 -m venv /ha
chroot "$new" /ha/bin/pip install --quiet uv
chroot "$new" /ha/bin/uv pip install --quiet --python /ha/bin/python --no-deps "homeassistant==$version"
pins=$site/homeassistant/package_constraints.txt
# shellcheck disable=SC2086  # a list of words
needed=$(chroot "$new" /ha/bin/python - $integrations <<'END'
import importlib.util, json, pathlib, sys

folder = pathlib.Path(importlib.util.find_spec("homeassistant").origin).parent / "components"  # it cannot be imported yet
manifests = [json.loads((folder / name / "manifest.json").read_text()) for name in sys.argv[1:]]
print(*sorted({each for manifest in manifests for each in manifest.get("requirements", [])}))
END
)
# shellcheck disable=SC2086
chroot "$new" /ha/bin/uv pip install --quiet --python /ha/bin/python -c "$pins" "homeassistant==$version" $needed
mkdir "$new/config"

echo "$recipe" >"$new/recipe"
rm -rf "$root"
mv "$new" "$root"
echo "home-assistant: $root is made, $(du -sm "$root" | cut -f1) MB"
