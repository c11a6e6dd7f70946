# onnx-dha: everything a person types. `make help` lists the targets.

SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
DHA := bin/onnx-dha

# ONNX Runtime comes as a shared library from the npm package of its Node binding. The hash is of the package file, in
# the form of npm's lock files; another file is refused.
ORT_PACKAGE := onnxruntime-node@1.29.0
ORT_INTEGRITY := sha512-WjiVVB72riILz8HbYvxvmjKyE/WmkYoSfKY++axo5jAR609HQg8MwiG/HhShpTcJfmmAdzxxmB+MMST3A+SiPA==
ORT_OS := $(shell uname -s | tr 'A-Z' 'a-z')
ORT_ARCH := $(patsubst x86_64,x64,$(patsubst aarch64,arm64,$(shell uname -m)))
ORT_LIB := .ort/$(if $(filter darwin,$(ORT_OS)),libonnxruntime.dylib,libonnxruntime.so.1)

# The CUDA provider of the same release comes from another npm package, built for CUDA 13 on Linux x64. Its libraries go
# beside that of the runtime; CUDA and cuDNN themselves are the system's.
CUDA_PACKAGE := com.github.asus4.onnxruntime.linux-x64-gpu@0.4.9
CUDA_INTEGRITY := sha512-FopIhNE/Ng+v2X65wVc9clPCBCvhvA53Hxo2U0Kf5fGdVsC7iCA+mZ0KLWggcQAj7TIZ6pNidR4AC10g74Xo6w==
CUDA_FROM := package/Plugins/Linux/x64
CUDA_LIBS := libonnxruntime_providers_shared.so libonnxruntime_providers_cuda.so

PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Packages that start goroutines, or whose values are shared between those of others.
CONCURRENT := ./cmd/... ./fusion ./graph ./ort

# The runtimes that rewritten models are tried in; versions and hashes are in clients/package-lock.json.
CLIENTS := clients/node_modules/.package-lock.json

DEMO := testmodels/char-llama
FUZZTIME ?= 20s
ROUNDS ?= 5

.PHONY: help build runtime demo test clients test-runtimes check fmt vet staticcheck race bench quality fuzz proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## compile bin/onnx-dha
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(DHA) ./cmd/onnx-dha

runtime: $(ORT_LIB) ## install the ONNX Runtime library into .ort/

$(ORT_LIB):
	@set -euo pipefail; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	echo "fetching $(ORT_PACKAGE)"; \
	( cd "$$dir" && npm_config_update_notifier=false npm pack --silent $(ORT_PACKAGE) >/dev/null ); \
	got=$$(node -e 'const h = require("crypto").createHash("sha512"); \
		h.update(require("fs").readFileSync(process.argv[1])); \
		console.log("sha512-" + h.digest("base64"))' "$$dir"/*.tgz); \
	if [ "$$got" != "$(ORT_INTEGRITY)" ]; then \
		echo "$(ORT_PACKAGE) has integrity $$got, want $(ORT_INTEGRITY): not installed" >&2; exit 1; \
	fi; \
	from=package/bin/napi-v6/$(ORT_OS)/$(ORT_ARCH); \
	tar -xzf "$$dir"/*.tgz -C "$$dir" $$from 2>/dev/null || { \
		echo "$(ORT_PACKAGE) has no library for $(ORT_OS) on $(ORT_ARCH): put one into .ort/, or name it with --ort-lib or ONNXRUNTIME_LIB" >&2; exit 1; }; \
	mkdir -p .ort; \
	lib=$$(find "$$dir/$$from" -name 'libonnxruntime.so.1' -o -name 'libonnxruntime.*dylib' | sort | head -n 1); \
	cp "$$lib" $@.part; mv $@.part $@; \
	echo "installed $@"

runtime-cuda: $(ORT_LIB) .ort/libonnxruntime_providers_cuda.so ## install the CUDA provider beside it (Linux x64, CUDA 13)

.ort/libonnxruntime_providers_cuda.so:
	@set -euo pipefail; \
	if [ "$(ORT_OS)-$(ORT_ARCH)" != linux-x64 ]; then \
		echo "$(CUDA_PACKAGE) is for Linux on x64, this is $(ORT_OS) on $(ORT_ARCH)" >&2; exit 1; fi; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	echo "fetching $(CUDA_PACKAGE) (180 MB)"; \
	( cd "$$dir" && npm_config_update_notifier=false npm pack --silent $(CUDA_PACKAGE) >/dev/null ); \
	got=$$(node -e 'const h = require("crypto").createHash("sha512"); \
		h.update(require("fs").readFileSync(process.argv[1])); \
		console.log("sha512-" + h.digest("base64"))' "$$dir"/*.tgz); \
	if [ "$$got" != "$(CUDA_INTEGRITY)" ]; then \
		echo "$(CUDA_PACKAGE) has integrity $$got, want $(CUDA_INTEGRITY): not installed" >&2; exit 1; \
	fi; \
	tar -xzf "$$dir"/*.tgz -C "$$dir" $(addprefix $(CUDA_FROM)/,$(CUDA_LIBS)); \
	for lib in $(CUDA_LIBS); do \
		cp "$$dir/$(CUDA_FROM)/$$lib" ".ort/$$lib.part"; mv ".ort/$$lib.part" ".ort/$$lib"; echo "installed .ort/$$lib"; \
	done

demo: build runtime ## inspect, rewrite and verify a real model, into out/
	@mkdir -p out
	$(DHA) inspect $(DEMO)/model.onnx
	$(DHA) rewrite $(DEMO)/model.onnx --config $(DEMO)/dha.yaml -o out/char-llama.dha.onnx
	$(DHA) verify $(DEMO)/model.onnx out/char-llama.dha.onnx \
		--text $(DEMO)/sonnets.txt --vocab $(DEMO)/vocab.json --prompt 'Shall I compare thee' --generate 120

test: runtime ## run the tests
	$(GO) test -timeout 30m ./...

clients: $(CLIENTS) ## install the runtimes for JavaScript into clients/node_modules

$(CLIENTS): clients/package-lock.json
	cd clients && npm_config_update_notifier=false npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

test-runtimes: runtime clients ## run rewritten models in Go, Node, transformers.js and a browser; none may be missing
	RUNTIMES=required $(GO) test -count 1 -timeout 10m -run Runtimes -v ./cmd/onnx-dha

test-cuda: runtime-cuda ## run the tests that need a GPU; without one they are skipped and say what is missing
	$(GO) test -timeout 30m -count 1 -v -run 'CUDA' ./verify

check: fmt vet staticcheck clients test race ## all that a change has to pass

fmt:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "gofmt would change:" $$files >&2; exit 1; fi

vet:
	$(GO) vet ./...

staticcheck:
	$(GO) run $(STATICCHECK) ./...

race: runtime
	$(GO) test -race -short -timeout 30m $(CONCURRENT)
	$(GO) test -race -run 'Mix|Deterministic' ./rewrite
	$(GO) test -race -run 'Metrics|Meter|Determinism' ./verify

bench: runtime ## measure; writes gigabytes to TMPDIR, ROUNDS (5) times
	$(GO) test -short -run '^$$' -bench . -benchmem -timeout 60m ./...
	$(GO) test -run '^$$' -bench . -benchtime $(ROUNDS)x -timeout 60m ./cmd/onnx-dha

quality: runtime ## learn configurations for trained models and hold them against the targets of docs/quality.md
	$(GO) test -run '^$$' -bench Quality -benchtime 1x -timeout 0 -v ./learn

fuzz: runtime ## run every fuzz target for FUZZTIME (20s)
	@set -euo pipefail; \
	for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

proto: ## generate the ONNX bindings (needs protoc)
	GOBIN=$(CURDIR)/.bin $(GO) install $(PROTOC_GEN_GO)
	PATH=$(CURDIR)/.bin:$$PATH protoc --go_out=. --go_opt=module=onnx-dha graph/onnxpb/onnx.proto

clean: ## remove what was built; the runtime library stays
	rm -rf bin out .bin
