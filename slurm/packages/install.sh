#!/bin/bash
# Install without network what wheelhouse.sh collected: bash WHEELHOUSE/install.sh PREFIX [OPTION OF PIP INSTALL]...
#   PYTHON=python3   the interpreter of the virtual environment that PREFIX becomes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:?name a folder that is not there yet: install.sh PREFIX}
shift
python=${PYTHON:-python3}
if ! (cd "$here" && sha256sum --check --quiet SHA256SUMS); then
    echo "install.sh: $here is not complete, or a file in it is damaged: copy or build it again" >&2
    exit 1
fi
wanted=$(cat "$here/built-for")
found=$("$python" -c 'import platform; print(platform.python_version().rpartition(".")[0], platform.machine())')
if [ "$found" != "$wanted" ]; then
    echo "install.sh: the wheels are for Python $wanted, and $python is $found: set PYTHON, or build others there" >&2
    exit 1
fi
if [ -e "$prefix" ]; then
    echo "install.sh: $prefix is there already: name another folder, or remove it" >&2
    exit 1
fi
extras=$(cat "$here/extras")
"$python" -m venv "$prefix"
# Neither pip's configuration nor its variables may name other places, nor PYTHONPATH packages that seem to be there.
PIP_CONFIG_FILE=/dev/null "$prefix/bin/python" -I -m pip --isolated install --no-index --find-links "$here" \
    --constraint "$here/constraints.txt" "$@" "ollampi${extras:+[$extras]}"
# A folder for PATH that holds the command alone: the interpreter beside it shall not hide that of others.
mkdir "$prefix/commands"
ln -s ../bin/ollampi "$prefix/commands/ollampi"
echo "installed; put $prefix/commands into PATH"
