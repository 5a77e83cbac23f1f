# Two commands on a fresh machine: `make demo` installs and runs the whole method on the embedded
# model, `make test` installs and passes the tests. Both create .venv.
PYTHON ?= python3
VENV = .venv/bin

.PHONY: demo test check dev
demo: .venv/done
	$(VENV)/python ptalign.py demo

test: .venv/done
	$(VENV)/python -m pytest

# What takes longer: several processes, servers on this machine, a compiler.
check: .venv/done
	$(VENV)/python -m pytest -m slow

# The peers that some tests compare with, and the linter.
dev: .venv/done
	$(VENV)/python -m pip install --quiet -r requirements-dev.txt
	$(VENV)/python -m ruff check .

# fcntl: the locks on runs' folders are those of Linux and macOS.
.venv/done: requirements.txt
	@$(PYTHON) -c 'import sys, fcntl; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or newer on Linux or macOS: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet -r requirements.txt
	touch $@
