#!/bin/sh
# Open WebUI in an environment of its own, for its test: open_webui.sh FOLDER PYTHON
# Without what reads documents and speech, and without torch, which its server imports at their first use alone: 1.2 GB.
set -eu

folder=$1
python=$2
version=0.12.4

if [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; then
    echo "open-webui: $folder is ready"
    exit 0
fi
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
for name in torch accelerate sentence-transformers faster-whisper ctranslate2 opencv-python-headless rapidocr; do
    echo "$name ; sys_platform == 'never'"
done >"$folder/overrides"
"$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --override "$folder/overrides" "open-webui==$version"
echo "$version" >"$folder/version"
echo "open-webui: $folder is made, $(du -sm "$folder" | cut -f1) MB"
