# The two commands of the project. Each makes .venv first; it is made anew only when the pins change.

BIN := .venv/bin

.PHONY: train test

train: .venv/installed
	$(BIN)/bmpeft train recipes/medqa_lora.yaml output.overwrite=true $(OVERRIDES)

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_OPTIONS)

# Each candidate is run, not only looked up: a name on the PATH may be a shim for a Python that is not there.
.venv/installed: pyproject.toml setup.py constraints.txt
	@for python in python3.11 python3.12 python3.13 python3; do \
		$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "make: Python 3.11 or newer with its venv module is needed, and none was found" >&2; exit 1; }; \
	$$python -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' --constraint constraints.txt
	@touch $@
