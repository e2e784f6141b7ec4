"""`python -m palimpsest`: the same as the console script."""

from palimpsest.cli import app

app()
