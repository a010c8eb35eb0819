#!/usr/bin/env bash
# Builds the book as a web site in _site/html: tools/site.sh [--out FOLDER] [--only 12 24]
set -euo pipefail
cd "$(dirname "$0")/.."
python -c 'import sphinx, myst_nb, sphinx_book_theme' 2>/dev/null || { echo "some packages are missing: pip install -e '.[docs]'"; exit 2; }
exec python tools/site_build.py "$@"
