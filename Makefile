# Two commands do all set-up: `make serve` and `make test`.
.PHONY: serve test demo bench lock

serve: .venv/ready
	.venv/bin/fermata serve

demo: .venv/ready
	.venv/bin/fermata demo

test: .venv/ready-dev
	scripts/test

bench: .venv/ready-dev
	.venv/bin/python -m bench

.venv/ready: requirements.lock pyproject.toml hatch_build.py scripts/setup
	scripts/setup

.venv/ready-dev: .venv/ready requirements-dev.lock
	scripts/setup --dev

# Needs uv. Rewrites both lock files from pyproject.toml.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --group dev --constraints requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--quiet --output-file requirements-dev.lock
