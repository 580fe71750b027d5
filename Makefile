# make          builds bin/secrate
# make help     lists the targets
#
# What is run in CI is run by these targets and nothing else.

PREFIX   ?= /usr/local
DESTDIR  ?=
FUZZTIME ?= 30s
BIN      := bin/secrate

.PHONY: build install install-systemd check test test-zfs race fuzz test-all zfs-vm bench bench-zfs demo docs clean help
.DEFAULT_GOAL := build

build: ## the command, bin/secrate: one static file, without this machine's paths in it
	CGO_ENABLED=0 go build -trimpath -o $(BIN) ./cmd/secrate

install: build docs install-systemd ## the command, man pages, completions and units of systemd, below PREFIX (/usr/local)
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/secrate
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 dist/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 0644 dist/completions/bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/secrate
	install -D -m 0644 dist/completions/zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_secrate
	install -D -m 0644 dist/completions/fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/secrate.fish

# The units name the binary by its path when it runs, without DESTDIR.
install-systemd:
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for u in secrate.service secrate-snap.service secrate-snap.timer; do \
		sed 's|=/usr/local/bin/secrate |=$(PREFIX)/bin/secrate |' dist/systemd/$$u > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$u && \
		chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$u || exit 1; done

check: ## format, vet, staticcheck, go.mod, imports
	@bad=$$(gofmt -l .); test -z "$$bad" || { echo "gofmt -w these:"; echo "$$bad"; exit 1; }
	go vet ./...
	go vet -tags secrate_crash,minio,zfs,zfsvm ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go test ./internal/archtest

test: ## every test that needs no virtual machine; as root, those on real file systems too
	scripts/test.sh -timeout 20m ./...

test-zfs: ## the tests that need OpenZFS, in a virtual machine that is made first: 7 minutes, once
	scripts/zfsvm.sh test

race: ## the tests with the race detector, which needs a C compiler
	CGO_ENABLED=1 scripts/test.sh -race -timeout 60m ./...

fuzz: ## every fuzz target, FUZZTIME (30s) each
	FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

test-all: ## test, and the same suite against MinIO
	scripts/test.sh -tags minio -timeout 40m ./...

zfs-vm: ## a shell in that virtual machine, beside a pool, an S3 server and secrate
	scripts/zfsvm.sh shell

bench: build ## the figures, beside restic's and borg's where they are installed
	scripts/bench.sh

bench-zfs: build ## the figures of ZFS streams, recorded in the virtual machine
	scripts/bench-zfs.sh

demo: build ## snapshots of a Btrfs volume on a local S3 server, restored and compared
	scripts/demo.sh

docs: build ## man pages and completions from the command's own text, into dist/
	rm -rf dist/man dist/completions
	mkdir -p dist/man dist/completions
	$(BIN) man dist/man
	for s in bash zsh fish; do $(BIN) completion $$s > dist/completions/$$s || exit 1; done

clean: ## what the other targets have made
	rm -rf bin dist/man dist/completions

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
