#!/bin/sh
# A virtual environment of an older Python, with what a board has: venv.sh VERSION FOLDER REQUIREMENTS
# Where there is no such Python it says so and makes nothing: what needs it is skipped.
set -eu

version=$1
folder=$2
requirements=$3

for python in "$HOME/.pyenv/versions/$version".*/bin/python"$version" "python$version"; do
    "$python" -c pass 2>/dev/null && break
    python=
done
if [ -z "$python" ]; then
    echo "no Python $version on this machine: its tests are skipped"
    exit 0
fi

"$python" -m venv --clear "$folder"
pip() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: "$@"; }
pip 'pip>=21.3'  # the one that comes with Python 3.6 does not know today's wheels
pip --no-compile --requirement "$requirements"
touch "$folder/ready"
