# Thin names for the plain commands; everything works without make.
.PHONY: setup check test parity bench

setup:
	pip install -e '.[dev]'
	pre-commit install

check:
	ruff format --check .
	ruff check .
	pyright

test:
	pytest

parity:
	pytest -m parity

bench:
	comvex bench
