#!/bin/sh
# ansible-core in an environment of its own, since it is no package of ours: ansible.sh PYTHON FOLDER
# Where it cannot be had this says so, and nothing stays: the test of the fleet's role is skipped.
set -eu

python=$1
folder=$2

"$python" -m venv --clear "$folder"
if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'ansible-core>=2.16,<2.20'; then
    echo "no ansible-core here: the role of fleet/ is not tried" >&2
    rm -rf "$folder"
fi
