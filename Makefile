# Two commands do everything on a fresh machine: `make demo` and `make test`. No root needed.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO    = .demo
RESULTS = .bench
SITE    = .docs
PYTEST  = $(BIN)/python -m pytest -q -p no:cacheprovider
# several at once, file by file, for many tests wait more than they compute
JOBS   ?= 4
MANY    = $(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder
# uv installs several times as fast as pip, which does it where uv is missing or finds no way to the packages
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $(1)
FAST    = tests/test_floors.py tests/keys tests/codec tests/scheduler tests/render tests/task

.PHONY: demo lab check test fuzz test-chaos test-nfs nfs lint unit integration chromium redis sshd slurm shells zoo notebooks docs bench bench-quick rebuild-notebooks clean

demo: $(VENV)/installed-lab
	@$(BIN)/python tests/demo.py $(DEMO)

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab notebooks/01_tutorial.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

# what one runs while working: a minute and a half at most
check: lint
	@echo "== fast tests: the pure parts"
	$(MANY) $(FAST) -m "not slow"

test: lint unit integration notebooks

lint: $(VENV)/installed-test
	@echo "== lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# bytes that a hostile store may hold, for as long as one likes: make fuzz FUZZ_EXAMPLES=100000
fuzz: $(VENV)/installed-test
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),5000) $(PYTEST) tests/store/test_fuzz.py --timeout 0 --durations 0

# faults at random, three minutes a store; SEED=… for others. Before that, Redis servers that are away for a minute
test-chaos: $(VENV)/installed-test redis
	LONG_OUTAGES=1 $(PYTEST) tests/store/test_outages.py -k away_and_nothing_runs_twice
	$(BIN)/python -m tests.chaos --seconds 180 --seed $(or $(SEED),1)

# keys of real objects and of code, on another Python too: make zoo PYTHON=python3.13 VENV=.venv-3.13
zoo: $(VENV)/installed-zoo
	$(PYTEST) tests/test_floors.py tests/keys tests/codec tests/task tests/scheduler

# libraries whose objects `tests/keys/test_zoo.py` names: one that this Python has no wheel for is left out
$(VENV)/installed-zoo: pyproject.toml $(VENV)/installed-test
	@$(BIN)/python -m pip freeze --exclude-editable > $@-constraints
	@libraries=$$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['zoo'])"); \
		install='$(call INSTALL,--only-binary :all: --constraint $@-constraints "$$@")'; \
		timeout 600 sh -c "$$install" sh $$libraries >/dev/null 2>&1 || for library in $$libraries; do \
		timeout 180 sh -c "$$install" sh "$$library" >/dev/null 2>&1 || echo "zoo: $$library can't be installed here; its objects are skipped"; done
	@touch $@

unit: $(VENV)/installed-test $(VENV)/installed-zoo redis
	@echo "== unit tests: each part by itself, on real stores (files, redis-server, memory)"
	$(MANY) $(FAST) tests/store tests/session

integration: $(VENV)/installed-test chromium redis sshd slurm shells
	@echo "== integration tests: real processes, kernels, browser, shells, sshd, executors, and Jug beside us"
	$(MANY) tests $(addprefix --ignore=,$(FAST) tests/store tests/session)

# the browser test needs one: where it is missing it is installed if we may, else that test says why it is skipped
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || [ $$(id -u) != 0 ] || \
		! command -v apt-get >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

# likewise: the tests start servers of their own
redis:
	@{ command -v redis-server valkey-server && command -v openssl; } >/dev/null || [ $$(id -u) != 0 ] || \
		! command -v apt-get >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -qq --no-install-recommends redis-server openssl >/dev/null; }

# and the tests of workers on other hosts need these: an ssh server of their own, and networks of their own
sshd:
	@{ test -x /usr/sbin/sshd && command -v ssh >/dev/null && command -v ip >/dev/null; } || [ $$(id -u) != 0 ] || \
		! command -v apt-get >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends openssh-server openssh-client iproute2 >/dev/null; }

# and those of batch jobs start a Slurm of one node
slurm:
	@{ test -x /usr/sbin/slurmctld && command -v sbatch; } >/dev/null || [ $$(id -u) != 0 ] || \
		! command -v apt-get >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends slurm-wlm slurmctld slurmd munge >/dev/null; }

# completion is tried in these
shells:
	@{ command -v zsh && command -v fish && command -v tcsh; } >/dev/null || [ $$(id -u) != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends zsh fish tcsh >/dev/null; }

# the store of two machines that share a folder over NFS; they are emulated, so it takes minutes, root, and x86_64
test-nfs: $(VENV)/installed-test nfs
	$(PYTEST) -rs -s -m nfs tests/store/test_nfs.py

nfs:
	@{ command -v ganesha.nfsd && command -v qemu-system-x86_64 && command -v busybox && command -v cpio && command -v depmod; } \
		>/dev/null || [ $$(id -u) != 0 ] || ! command -v apt-get >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
		nfs-ganesha nfs-ganesha-vfs nfs-common qemu-system-x86 busybox-static cpio kmod >/dev/null; }

# every notebook runs against a store of its own and must print what is saved in it
notebooks: $(VENV)/installed-test sshd redis
	@echo "== notebooks: each prints what is saved in it"
	$(PYTEST) -n 2 tests/check_notebooks.py

# the manual as a site that needs no network: open .docs/html/index.html
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -d $(SITE)/doctrees notebooks $(SITE)/html

# run the notebooks anew and save what they print (after a change of what is shown)
rebuild-notebooks: $(VENV)/installed-test
	$(BIN)/python tests/check_notebooks.py

bench: $(VENV)/installed-bench
	$(BIN)/python tests/benchmarks/table.py --output $(RESULTS)
	$(BIN)/python tests/benchmarks/hosts.py

bench-quick: $(VENV)/installed-bench
	$(BIN)/python tests/benchmarks/table.py --quick

$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	UV_COMPILE_BYTECODE=1 $(call INSTALL,--config-settings editable_mode=compat --editable '.[$*]')
	@$(BIN)/python -m compileall -q jug_notebook kernel_ext  # as all else is: nobody waits for it at a start
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jug_notebook needs Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: uv

clean:
	rm -rf $(VENV) $(DEMO) $(RESULTS) $(SITE) build *.egg-info
