# Everything a person needs: make demo, make test, make check. CI runs the same.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Threads that wait by spinning take the cores from whatever runs beside them.
export OMP_WAIT_POLICY ?= PASSIVE
export DO_NOT_TRACK = 1
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lock image-locks protocol bench test-programs kafka kafka-files helm-files chart check-programs test-images s3 s3-files bench-continual bench-reviews bench-scenarios bench-parts bench-serving bench-kafka test-faults test-outage cluster cluster-files test-cluster test-fuzz bench-soak bench-scale metrics-table clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Install everything into .venv, as locked

# uv shares one cache between environments; without it every one would hold gigabytes of its own. Compiled once here,
# the packages need not be compiled at each start where Python may not write beside them.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup  ## The whole loop on this machine, live; ends with var/demo/report.html
	$(BIN)/perdure demo $(ARGS)

# One thread a process of the tests: those that wait for each other's would take many times as long.
test: setup  ## Every test, on all cores (ARGS="PATH": those)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

check: setup  ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup  ## Resolve the versions in requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra grpc --extra otel --extra demo --extra dev --generate-hashes --no-header \
		--python-version 3.11 --quiet --output-file requirements.lock
	$(MAKE) --no-print-directory image-locks

# What each image installs: the same versions as everywhere, without what only people need who work on Perdure.
IMAGE_EXTRAS_serving     := --extra grpc --extra otel
IMAGE_EXTRAS_serving-gpu := --extra gpu --extra grpc --extra otel --extra demo
IMAGE_EXTRAS_trainer     := --extra cpu --extra demo
IMAGE_EXTRAS_trainer-gpu := --extra gpu --extra demo
IMAGES := serving serving-gpu trainer trainer-gpu

image-locks: setup $(IMAGES:%=deploy/locks/%.lock) deploy/locks/build.lock

deploy/locks/build.lock: requirements.lock deploy/locks/build.in
	$(BIN)/uv pip compile deploy/locks/build.in --constraints requirements.lock --generate-hashes --no-header \
		--no-annotate --python-version 3.11 --quiet --output-file $@

deploy/locks/%.lock: requirements.lock pyproject.toml
	$(BIN)/uv pip compile pyproject.toml $(IMAGE_EXTRAS_$*) --constraints requirements.lock --generate-hashes --no-header \
		--no-annotate --python-version 3.11 --quiet --output-file $@

# Built by an old protoc on purpose: what it makes runs with that release of protobuf and with the next major one. In a
# pool of its own: clients of this protocol bring the same names, and one pool takes them once.
RPC := services/perdure_services/serving/rpc
protocol: setup  ## Make the messages of the gRPC protocol anew from its .proto
	cd $(RPC) && $(abspath $(BIN))/uv run --quiet --no-project --with grpcio-tools==1.75.1 \
		python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. open_inference.proto
	sed -i.bak 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(RPC)/open_inference_pb2.py
	rm $(RPC)/open_inference_pb2.py.bak

bench: setup  ## The figures in the README: benchmarks/results/*.json
	$(BIN)/python benchmarks/backtest_clinc.py $(ARGS)

kafka: setup  ## A Kafka broker on 127.0.0.1:9092, until Ctrl-C (Java 17 and Maven)
	@$(BIN)/python deploy/kafka/broker.py $(ARGS)

test-programs: kafka-files helm-files check-programs s3-files  ## Bring all programs that tests run: Java 17, Maven, Go 1.25

kafka-files: setup  ## Bring what the broker of the tests runs from, once
	@$(BIN)/python deploy/kafka/broker.py --fetch

helm-files: setup  ## Bring Helm 3 and 4 and what else the tests of the chart need, once
	@$(BIN)/python helm/programs.py

chart: setup  ## Write the chart's schema and README anew
	$(BIN)/python helm/documents.py

check-programs: setup  ## Bring what checks the deployment: promtool (Debian), the Compose library (Go), once
	@$(BIN)/python deploy/checks/programs.py

test-images: setup  ## Make the CPU images in folders by the Dockerfile's commands, and run them read-only; as root, gigabytes
	PERDURE_TEST_IMAGES=1 $(BIN)/pytest tests/deploy/test_images.py --no-header $(ARGS)

s3: setup  ## An S3-compatible server on 127.0.0.1:7070, until Ctrl-C (Go 1.25)
	@$(BIN)/python deploy/s3/server.py $(ARGS)

s3-files: setup  ## Build the S3 server of the tests, once
	@$(BIN)/python deploy/s3/server.py --fetch

bench-continual: setup  ## Perdure beside the methods that people try first; hours (ARGS=--quick: ten minutes)
	$(BIN)/python benchmarks/continual.py $(ARGS)

bench-reviews: setup  ## Perdure beside others where old labels come in new words; half an hour
	$(BIN)/python benchmarks/reviews.py $(ARGS)

bench-scenarios: setup  ## Wrong and late labels, other orders, a long history, what each part adds; an hour and more
	$(BIN)/python benchmarks/scenarios.py $(ARGS)

bench-parts: setup  ## The replay memory, the training of LoRA and its Fisher information, each beside its peers
	$(BIN)/python benchmarks/memory.py $(ARGS)
	$(BIN)/python benchmarks/training.py $(ARGS)
	$(BIN)/python benchmarks/fisher.py $(ARGS)

bench-serving: setup  ## Perdure beside the servers that people try first; an hour and more (ARGS=--quick: 15 minutes)
	$(BIN)/python benchmarks/serving.py $(ARGS)

bench-kafka: setup kafka-files  ## What recording, sending, catching up and an outage cost, beside a real broker
	$(BIN)/python benchmarks/kafka_figures.py $(ARGS)
	$(BIN)/python benchmarks/kafka_outage.py

test-faults: setup kafka-files  ## The faults against a real broker, at full length
	PERDURE_FULL_FAULTS=1 $(BIN)/pytest tests/e2e/kafka --timeout 900

test-outage: setup s3-files  ## perdure serve with its object store down for an hour (ARGS="--minutes 5": less)
	$(BIN)/python benchmarks/registry_outage.py $(ARGS)

cluster: setup  ## A Kubernetes API server on this machine, until Ctrl-C (Go); no node, so nothing runs
	@$(BIN)/python deploy/cluster/api_server.py $(ARGS)

cluster-files: setup  ## Build the API server, etcd and the controllers from their Go modules, once; a quarter of an hour
	@$(BIN)/python deploy/cluster/api_server.py --build

test-cluster: setup cluster-files helm-files  ## The chart against a real Kubernetes API server
	$(BIN)/pytest -m cluster tests/cluster --timeout 900 $(ARGS)

test-fuzz: setup  ## 10,000 requests made from the API's own description; FUZZ=N for others, SEED=N for others still
	PERDURE_FUZZ=$(or $(FUZZ),10000) PERDURE_FUZZ_SEED=$(or $(SEED),0) $(BIN)/pytest --timeout 7200 --no-header \
		tests/services/serving/test_described_requests.py tests/services/serving/test_hostile_requests.py

bench-soak: setup  ## Half an hour of perdure serve under load with swaps, then 100 swaps: does memory stay flat?
	$(BIN)/python benchmarks/soak.py $(ARGS)
	$(BIN)/python benchmarks/soak.py --swaps 100 $(ARGS)

bench-scale: setup kafka-files  ## Replicas and ingesters, 1 to 4 of each, and the tables of deploy/SCALING.md; half an hour
	$(BIN)/python benchmarks/scale.py $(ARGS)

metrics-table: setup  ## Write docs/metrics.md anew: all series that Prometheus is told
	$(BIN)/python -m perdure_services.monitor.page > docs/metrics.md

clean:  ## Remove what was made here, but for .venv
	rm -rf var dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
