"""One command for a bare GPU machine: ``python -m tools.gpu OUT`` packs a folder, ``python3 OUT/run.py`` runs in it."""
