#!/usr/bin/env bash
# Makes the project's environment: make_env.sh PYTHON VENV. Called by the Makefile.
set -euo pipefail
python=$1 venv=$2

say() { printf '%s\n' "$*"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "error: $python is missing or older than Python 3.11; name another one: make install PYTHON=python3.11" >&2
    exit 2
fi

say "1 of 3: the environment $venv"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        # Debian keeps ensurepip in python3-venv; without that package pip can still fill an empty environment.
        rm -rf "$venv"
        if ! { "$python" -m venv --without-pip "$venv" && "$python" -m pip --python "$venv/bin/python" install -q pip; }; then
            rm -rf "$venv"
            say "error: $python can make no virtual environment; on Debian: apt-get install python3-venv" >&2
            exit 2
        fi
    fi
fi

# Of what pip tells: each package as it is looked up, with its size where it is fetched, and when they are unpacked.
tell() {
    awk -v all="$(grep -c '==' constraints.txt)" '
        /^ *Collecting / { printf "  %d of about %d: %s\n", ++n, all, $2; fflush() }
        /^ *Downloading .*MB\)/ { size = $0; sub(/.*\(/, "(", size); sub(/^ *Downloading /, ""); sub(/ \(.*/, ""); sub(/.*\//, "")
            printf "    fetches %s %s\n", $0, size; fflush() }
        /^Installing collected packages/ { print "3 of 3: unpacks them, a minute or two"; fflush() }'
}

say "2 of 3: the packages, about 6 GB, most of it torch; a few minutes"
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -c constraints.txt -e ".[experiments,speech,bench,examples,dev]" | tell
say "Installed into $venv. For commands that begin with python: . $venv/bin/activate"
