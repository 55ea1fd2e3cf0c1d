#!/bin/sh
# make.sh PYTHON OUT: the whole path of the house example, from invented houses to a package for a board.
# HOUSE_SAMPLES (of six sentences) and HOUSE_STEPS make it shorter. Called again, it goes on where it was stopped.
set -eu
python=$1 out=$2
here=$(dirname "$0")
merino() { "$python" -m merino_edge "$@"; }
mkdir -p "$out"

"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
[ -e "$out/train.jsonl" ] || {
    "$python" "$here/make_data.py" "$out/begun" --turns 6 --samples "${HOUSE_SAMPLES:-150000}" --seed 1
    mv "$out/begun" "$out/train.jsonl"
}
[ -e "$out/tokenizer.json" ] || "$python" "$here/make_tokenizer.py" "$out/train.jsonl" "$out/tokenizer.json" --vocab 1536
"$python" "$here/make_data.py" "$out/test.jsonl" --split test --samples 1000 --seed 2
"$python" "$here/make_data.py" "$out/negatives.txt" --negatives --samples 500 --seed 3

[ -e "$out/design.json" ] || merino design --device raspberry-pi-zero-2w --decode-ms 4 --prefill-ms 150 --memory-mb 80 \
    --context 256 --prompt 128 --vocab 1536 --precision int8 -o "$out/design.json"
resume= compile=
for saved in "$out"/checkpoint/trainer/checkpoint-*/saved.json; do
    [ ! -e "$saved" ] || resume=--resume
done
! command -v "${CXX:-g++}" > /dev/null || compile=--compile
merino train "$out/design.json" --data "$out/train.jsonl" --tokenizer "$out/tokenizer.json" \
    --steps "${HOUSE_STEPS:-7500}" --evaluations 6 --preset laptop-hour --prompt-weight 0.3 --cut-long \
    $compile $resume -o "$out/checkpoint"

for precision in fp32 int8 int4; do
    [ -e "$out/house-$precision" ] || merino export "$out/checkpoint" --precision "$precision" -o "$out/house-$precision"
    "$python" "$here/evaluate.py" "$out/house-$precision" --generated "$out/test.jsonl" --negatives "$out/negatives.txt" \
        -o "$out/$precision.json" --wrong "$out/$precision-wrong.jsonl"
done
[ -e "$out/house-board" ] || merino export "$out/checkpoint" --precision int8 --for raspberry-pi-zero-2w -o "$out/house-board"
[ -e "$out/house.merino" ] || merino pack "$out/house-board" --device raspberry-pi-zero-2w -o "$out/house.merino"
echo "$out/house.merino is for the board; here: $python $here/ask.py $out/house-int8 'it is dark in here'"
