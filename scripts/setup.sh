#!/bin/sh
# Finds a Python 3.11 to 3.13 and hands over to setup.py. PYTHON=/path/to/python chooses one.
set -u
cd "$(dirname "$0")/.." || exit 1

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! fits "$PYTHON"; then
        echo "setup: PYTHON=$PYTHON is no working Python 3.11, 3.12 or 3.13" >&2
        echo "  next: name another one, or leave PYTHON out" >&2
        exit 1
    fi
    exec "$PYTHON" scripts/setup.py "$@"
fi
for candidate in python3.11 python3.12 python3.13 python3 python; do
    if fits "$candidate"; then
        exec "$candidate" scripts/setup.py "$@"
    fi
done
echo "setup: no Python 3.11, 3.12 or 3.13 found (looked for python3.11, python3.12, python3.13, python3, python)" >&2
echo "  next: install one from python.org or your system, then: make ... PYTHON=/path/to/python3.11" >&2
exit 1
