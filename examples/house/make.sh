#!/bin/sh
# make.sh PYTHON OUT: the whole path of the house example, from invented houses to a package for a board.
# HOUSE_SAMPLES (of up to five sentences) and HOUSE_STEPS make it shorter. Called again, it goes on where it was stopped.
set -eu
python=$1 out=$2
here=$(dirname "$0")
merino() { "$python" -m merino_edge "$@"; }
samples=${HOUSE_SAMPLES:-110000} steps=${HOUSE_STEPS:-14000}
mkdir -p "$out"

"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
# 1. Data: the tokenizer's is of another seed, and training's has as many sentences of a house as a row holds.
[ -e "$out/tokenizer.json" ] || {
    "$python" "$here/make_data.py" "$out/spelled.jsonl" --turns --samples "$((samples / 7))" --seed 9
    "$python" "$here/make_tokenizer.py" "$out/spelled.jsonl" "$out/tokenizer.json" --vocab 1536
}
[ -e "$out/train.jsonl" ] || {
    "$python" "$here/make_data.py" "$out/begun" --turns --samples "$samples" --tokenizer "$out/tokenizer.json"
    mv "$out/begun" "$out/train.jsonl"
}
"$python" "$here/make_data.py" "$out/small.jsonl" --split test --samples 1000 --seed 2
for devices in 20 60 150 300; do
    "$python" "$here/make_data.py" "$out/$devices.jsonl" --split test --samples 250 --size $devices --seed 2
done
"$python" "$here/make_data.py" "$out/negatives.txt" --negatives --samples 500 --seed 3
"$python" "$here/make_data.py" "$out/calibrate.txt" --turns --text --samples 600 --seed 4 --tokenizer "$out/tokenizer.json"

# 2. Training, within 7 ms a token, 150 ms for 128 tokens of prompt and 80 MB.
decoder=$here/architecture.json
merino recommend "$decoder" --board raspberry-pi-zero-2w --backend onnxruntime --context 256 --prompt 128
resume=
for saved in "$out"/checkpoint/trainer/checkpoint-*; do
    [ ! -e "$saved" ] || resume=--resume
done
compile=  # for steps that take half as long
[ "$steps" -lt 1000 ] || ! command -v g++ > /dev/null || compile='--set compile=true'
merino train "$decoder" --data "$out/train.jsonl" --tokenizer "$out/tokenizer.json" \
    --preset laptop-hour --steps "$steps" $compile \
    --set evaluations=6 --set prompt_weight=0.3 --set weight_decay=0.1 $resume -o "$out/checkpoint"

# 3. Bundles, and their evaluation.
for precision in fp32 int8 int4; do
    set -- --precision "$precision"
    [ "$precision" = fp32 ] || set -- "$@" --text "$out/calibrate.txt"
    [ -e "$out/house-$precision" ] || merino export "$out/checkpoint" "$@" -o "$out/house-$precision"
done
set --
for name in small 20 60 150 300; do
    set -- "$@" --generated "$out/$name.jsonl"
done
"$python" "$here/evaluate.py" "$out/house-int8" "$@" --negatives "$out/negatives.txt" -o "$out/int8.json" --wrong "$out/int8-wrong.jsonl"
"$python" "$here/evaluate.py" "$out/house-int8" --templates first "$@" --negatives "$out/negatives.txt" -o "$out/templates-first.json"
[ -e "$out/house.merino" ] || merino pack "$out/house-int8" --board raspberry-pi-zero-2w -o "$out/house.merino"
echo "$out/house.merino is for the board; here: merino-edge house 'it is dark in here' --devices $here/house.json --bundle $out/house-int8"
