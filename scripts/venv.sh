#!/usr/bin/env bash
# venv.sh DIRECTORY: make a virtual environment there with Python 3.11 or later.
# PYTHON names the interpreter to use. As root on Debian or Ubuntu, what is missing is installed.
set -euo pipefail
venv=${1:?usage: venv.sh DIRECTORY}
names=${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}

usable() { # there, and new enough
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

choose() { # prints the first interpreter that is new enough
    local name
    for name in $names; do
        if usable "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

list() { # what there is instead, for the message
    local name found=
    for name in $names; do
        if command -v "$name" >/dev/null; then
            found="${found:+$found, }$("$name" --version 2>&1 | head -n 1) ($(command -v "$name"))"
        fi
    done
    echo "${found:-none}"
}

apt_install() { # PACKAGE… if this is a machine where that can be done; its log only if it fails
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $*" >&2
    local log
    log=$({ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } 2>&1) || {
        tail -n 20 <<<"$log" >&2
        return 1
    }
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

# An environment whose Python is too old, gone or without pip is made anew.
fresh=()
if [ -e "$venv" ] && ! { usable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    fresh=(--clear)
fi
echo "$venv: $("$python" --version) ($python)"
"$python" -m venv ${fresh[@]+"${fresh[@]}"} "$venv"
