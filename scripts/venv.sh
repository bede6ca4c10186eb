#!/usr/bin/env bash
# venv.sh DIRECTORY: make a virtual environment there with Python 3.11 or later.
# PYTHON names the interpreter to use. As root on Debian or Ubuntu, what is missing is installed.
set -euo pipefail
venv=${1:?usage: venv.sh DIRECTORY}
found=()

usable() { # new enough, and able to make an environment (Debian splits that off)
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

choose() { # prints the first interpreter that is new enough
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$name" >/dev/null || continue
        if usable "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

list() { # what there is instead, for the message
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$name" >/dev/null && found+=("$(command -v "$name") ($("$name" --version 2>&1))")
    done
    [ ${#found[@]} -gt 0 ] && printf '%s ' "${found[@]}" || printf 'none'
}

apt_install() { # install Debian packages, or say that it cannot be done
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $*" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

if ! python=$(choose); then
    if [ -n "${PYTHON:-}" ] || ! apt_install python3 python3-venv || ! python=$(choose); then
        echo "error: sagaz-es needs Python 3.11 or later; found: $(list)" >&2
        echo "Install one, or name it: make PYTHON=/path/to/python3 …" >&2
        exit 1
    fi
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! apt_install "python$version-venv" || ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "error: $python ($("$python" --version)) cannot make virtual environments" >&2
        echo "Install its venv module (Debian, Ubuntu: apt-get install python$version-venv)" >&2
        exit 1
    fi
fi

# An environment of an older Python, or one whose directory was moved, is made anew.
fresh=()
if [ -e "$venv" ] && ! { usable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    fresh=(--clear)
fi
echo "$venv: $("$python" --version) ($python)"
"$python" -m venv ${fresh[@]+"${fresh[@]}"} "$venv"
