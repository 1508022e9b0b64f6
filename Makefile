# Each target is one script or cargo call; what they need they install (qemu/setup) or name.
.PHONY: demo test lint deny bench
CARGO ?= cargo

# A guest formats, fills, checks and re-reads a disk that the daemon serves.
demo:
	qemu/demo

# Everything that can be tested on this machine, with a count of what was skipped and why.
test:
	tests/run

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

# Licences, banned packages, sources. Where there is no cargo-deny it is built, once, in minutes, and kept in build/tools.
CARGO_DENY ?= $(or $(shell command -v cargo-deny),build/tools/bin/cargo-deny)
deny: $(CARGO_DENY)
	$(CARGO_DENY) --workspace check --hide-inclusion-graph licenses bans sources

build/tools/bin/cargo-deny:
	$(CARGO) install --locked --quiet --root build/tools --version 0.20.2 cargo-deny

# The daemon beside qemu-storage-daemon, as a Markdown table (minutes). ROUNDS, SECONDS_PER_RUN, BENCH_DIR.
bench:
	qemu/setup
	$(CARGO) build --release --locked --package outboard
	OUTBOARD_BIN=$(abspath $(or $(CARGO_TARGET_DIR),target)/release/outboard) $(CARGO) bench --locked --package outboard-tests --bench peers
