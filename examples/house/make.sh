#!/bin/sh
# make.sh PYTHON OUT: the whole path of the house example, from invented houses to a package for a board.
# HOUSE_SAMPLES (of five sentences) and HOUSE_STEPS make it shorter. Called again, it goes on where it was stopped.
set -eu
python=$1 out=$2
here=$(dirname "$0")
merino() { "$python" -m merino_edge "$@"; }
mkdir -p "$out"

"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
[ -e "$out/train.jsonl" ] || {
    "$python" "$here/make_data.py" "$out/begun" --turns 5 --samples "${HOUSE_SAMPLES:-280000}" --seed 1
    mv "$out/begun" "$out/train.jsonl"
}
[ -e "$out/tokenizer.json" ] || "$python" "$here/make_tokenizer.py" "$out/train.jsonl" "$out/tokenizer.json" --vocab 1536
"$python" "$here/make_data.py" "$out/test.jsonl" --split test --samples 1000 --seed 2
"$python" "$here/make_data.py" "$out/negatives.txt" --negatives --samples 500 --seed 3

# Within 4 ms a token, 150 ms for 128 tokens of prompt and 80 MB: docs/decisions/training.md says why it is not the search's choice.
decoder=$here/architecture.json
merino score "$decoder" --device raspberry-pi-zero-2w --backend onnxruntime --context 256 --prompt 128
resume= compile=
for saved in "$out"/checkpoint/trainer/checkpoint-*/saved.json; do
    [ ! -e "$saved" ] || resume=--resume
done
! command -v "${CXX:-g++}" > /dev/null || compile=--compile
merino train "$decoder" --data "$out/train.jsonl" --tokenizer "$out/tokenizer.json" \
    --preset laptop-hour --steps "${HOUSE_STEPS:-15000}" --cut-long \
    --set evaluations=6 --set prompt_weight=0.3 --set weight_decay=0.04 $compile $resume -o "$out/checkpoint"

"$python" "$here/make_data.py" "$out/calibrate.txt" --turns 5 --text --samples 3000 --seed 4
for precision in fp32 int8 int4; do
    set -- --precision "$precision"
    [ "$precision" = fp32 ] || set -- "$@" --calibrate "$out/calibrate.txt"
    [ -e "$out/house-$precision" ] || merino export "$out/checkpoint" "$@" -o "$out/house-$precision"
    "$python" "$here/evaluate.py" "$out/house-$precision" --generated "$out/test.jsonl" --negatives "$out/negatives.txt" \
        -o "$out/$precision.json" --wrong "$out/$precision-wrong.jsonl"
done
[ -e "$out/house-board" ] || merino export "$out/checkpoint" --precision int8 --calibrate "$out/calibrate.txt" \
    --for raspberry-pi-zero-2w -o "$out/house-board"
[ -e "$out/house.merino" ] || merino pack "$out/house-board" --device raspberry-pi-zero-2w -o "$out/house.merino"
echo "$out/house.merino is for the board; here: $python $here/ask.py $out/house-int8 'it is dark in here'"
