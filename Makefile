# `make help` lists the targets. Each target installs or builds what it needs: on a fresh Debian 12,
# as root, with a Rust toolchain.
.DEFAULT_GOAL := help
.PHONY: help demo test test-debian test-node test-node-short versions clones unit packages pods cri bench bench-k8s conformance hostile fuzz fuzz-short soak cluster cluster-down test-k8s test-k8s-short machine image dist release lint deny clean

# Tests under ctr for which containerd's version matters.
tasks = $(addprefix --test ,control events exit_codes kills machine run streams)
# CRI tests: those for which containerd's version matters, and those for which one version is
# enough.
pods = $(addprefix --test cri_,lifecycle network kills)
more_pods = $(addprefix --test cri_,confinement surroundings streams security volumes file_features sub_paths scratch homes secrets late_skills claims images pod_specs probes skills hostile_share policy presets quiet)
# CRI tests of what only containerd 2 has.
pods_of_2 = $(addprefix --test cri_,sandboxer block_roots users)
# containerd 1.6 gives a pod no users of its own; 1.7 maps no volumes for them.
old_skip = -- --skip users_of_its_own
# The part of the tests with lying agents and with greedy pods that fits into `make test`.
lies = answer_that_claims answers_that_nobody ends_that events_without kill_that statistics_as case_3_start text_with
abuses = fork_bomb memory_bomb log_flood
# The part of the tests on nodes in VMs that fits into `.ci/run`.
node_short = container_by_ctr vm_starts_from pod_by_cri process_killed_ends_the_pod_and_leaves_nothing::case_2 uninstalled_node
# A pod with hostNetwork crashes containerd 2.1.4 if the runtime has sandboxer = "shim":
# containerd#12983.
shim_skip = -- --skip host_network_is_refused_with_a_reason
# Not in `make test`: resources, scale and unlimited take long and much memory; egress waits more
# than a minute for an address to close; nested, servers, user_data, unlimited and posix take
# minutes and 1.5 GB of Debian's packages.
all_pods = $(pods) $(more_pods) $(addprefix --test cri_,resources scale nested servers user_data unlimited posix egress)

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' Makefile | expand -t 16

demo: ## containers in VMs of their own, with a skill and a home, through a real containerd
	@packaging/setup demo
	@cargo xtask demo

test: ready unit packages ## the tests, on containerd 2.1 and, where its version matters, 1.6 and 1.7 (`make pods` has more)
	CAISSON_TEST_CONTAINERD=2 cargo test -p caisson-tests
	CAISSON_TEST_CONTAINERD=1.6 cargo test -p caisson-tests $(tasks)
	CAISSON_TEST_CONTAINERD=2 cargo test -p caisson-tests $(pods) $(more_pods) $(pods_of_2) --test node_install
	CAISSON_TEST_CONTAINERD=2 CAISSON_TEST_SANDBOXER=shim cargo test -p caisson-tests --test cri_lifecycle --test cri_users $(shim_skip)
	CAISSON_TEST_CONTAINERD=1.6 cargo test -p caisson-tests --test cri_lifecycle --test cri_network
	CAISSON_TEST_CONTAINERD=1.7 cargo test -p caisson-tests --test cri_lifecycle
	@cargo xtask image --hostile
	CAISSON_TEST_CONTAINERD=2 cargo test -p caisson-tests --test hostile_agent -- $(lies)
	CAISSON_TEST_CONTAINERD=2 cargo test -p caisson-tests --test hostile_abuse -- $(abuses)

test-debian: ready ## some of the tests on Debian's QEMU and kernel, where a VM boots
	@cargo xtask dist --debian
	CAISSON_TEST_MACHINE=debian cargo test -p caisson-tests --test machine --test exit_codes --test cri_lifecycle

versions: ready ## what `make test` leaves out of other versions of containerd and of sandboxes by the shim
	CAISSON_TEST_CONTAINERD=1.6 cargo test --no-fail-fast -p caisson-tests --test homes --test skills
	CAISSON_TEST_CONTAINERD=1.6 cargo test --no-fail-fast -p caisson-tests $(pods)
	CAISSON_TEST_CONTAINERD=1.7 cargo test --no-fail-fast -p caisson-tests $(pods)
	CAISSON_TEST_CONTAINERD=2 CAISSON_TEST_SANDBOXER=shim cargo test --no-fail-fast -p caisson-tests $(pods) --test cri_surroundings $(shim_skip)

clones: ## VMs that start from a template, on our own QEMU and kernel: their own tests, and those of `make test`
	@packaging/setup test
	@cargo xtask machine
	@cargo xtask dist
	@cargo xtask test-tools
	cargo test -p caisson-vmm --test template
	CAISSON_TEST_CONTAINERD=2 cargo test -p caisson-tests --test clones
	CAISSON_TEST_CONTAINERD=2 CAISSON_TEST_START=clone cargo test --no-fail-fast -p caisson-tests
	CAISSON_TEST_CONTAINERD=2 CAISSON_TEST_START=clone cargo test --no-fail-fast -p caisson-tests $(pods) $(more_pods) $(pods_of_2)

test-node: node-ready ## on Debian 12 and 13 as nodes in VMs, with systemd and KVM: what only such a node has, then the tests of `make test`; hours
	@cargo xtask node-vm
	CAISSON_TEST_DEBIAN=12 cargo test --no-fail-fast -p caisson-tests --test node_vm -- --test-threads 1 --skip suites::
	CAISSON_TEST_DEBIAN=13 cargo test --no-fail-fast -p caisson-tests --test node_vm -- --test-threads 1 --skip suites::
	CAISSON_TEST_DEBIAN=12 cargo test --no-fail-fast -p caisson-tests --test node_vm -- --test-threads 1 suites::
	CAISSON_TEST_DEBIAN=13 cargo test --no-fail-fast -p caisson-tests --test node_vm -- --test-threads 1 suites::

test-node-short: node-ready ## of these, what fits into .ci/run, on Debian 12
	@cargo xtask node-vm 12
	CAISSON_TEST_DEBIAN=12 cargo test -p caisson-tests --test node_vm -- --test-threads 1 $(node_short)

unit: ## the tests that need no VM and no root
	@packaging/setup test
	cargo test --workspace --exclude caisson-tests

packages: ## the chart, the node image and the Debian package: the tests that need no VM
	@packaging/setup test
	@cargo xtask test-tools --chart
	@cargo xtask dist
	@cargo xtask release --as-is
	cargo test -p caisson-tests --test chart --test packages

pods: ready ## all tests by CRI, on the containerd that CAISSON_TEST_CONTAINERD names (2, 1.7 or 1.6), sandboxes by CAISSON_TEST_SANDBOXER (shim)
	@cargo xtask test-tools --posix
	@cargo xtask test-tools --nerdctl
	cargo test --no-fail-fast -p caisson-tests --test nerdctl $(all_pods) $(if $(filter 1.%,$(CAISSON_TEST_CONTAINERD)),$(old_skip),$(pods_of_2)) \
		$(if $(filter shim,$(CAISSON_TEST_SANDBOXER)),$(shim_skip))
	cargo test --no-fail-fast -p caisson-tests --test rootfs -- --ignored

hostile: ready ## pods whose agent lies, and pods that take all they can, each for a minute: figures of what others had of it
	@cargo xtask image --hostile
	cargo test --no-fail-fast -p caisson-tests --test hostile_agent -- --nocapture --include-ignored
	CAISSON_TEST_FULL=1 cargo test --no-fail-fast -p caisson-tests --test hostile_abuse -- --nocapture

cri: ready ## containerd's own CRI tests and critest, with runc and with Caisson: docs/conformance.md
	@cargo xtask test-tools --integration
	@cargo xtask run cri-integration
	@cargo xtask run critest

test-k8s: k8s-ready ## on a Kubernetes of one node: kubectl's verbs, Services, updates, errors, deploy/examples, the chart, agent-sandbox, NetworkPolicies
	cargo test -p caisson-tests --test k8s -- --test-threads 2
	cargo test -p caisson-tests --test k8s_chart
	@cargo xtask cluster-tools --add-ons
	cargo test -p caisson-tests --test k8s_add_ons

test-k8s-short: k8s-ready ## of these, what fits into .ci/run
	cargo test -p caisson-tests --test k8s -- --test-threads 2 deployments kubectl services errors

conformance: k8s-ready ## Kubernetes' own end-to-end tests for nodes, with runc and with Caisson: docs/conformance.md
	@cargo xtask cluster-tools --conformance
	@cargo xtask run conformance

# What a release has is measured; the variable holds for what these targets need, too.
bench bench-k8s: dist_flags = --release

bench: ready ## start times, memory and network of containers and pods beside runc's, in one run
	@packaging/setup bench
	@cargo xtask run bench

bench-k8s: k8s-ready ## pods of a cluster from create to Ready, one and ten at once, beside runc's
	@cargo xtask run bench cluster

soak: ready ## 200 containers one after another, then nothing may be left; two cpus of a VM at work for an hour
	CAISSON_TEST_SOAK=200 CAISSON_TEST_SOAK_SECONDS=3600 cargo test -p caisson-tests --test soak -- --nocapture

fuzz: ## the fuzz targets of tests/fuzz, or those that TARGETS names, each for FUZZ_SECONDS of CPU time (3600); fails on a finding
	@packaging/setup test
	@cargo xtask fuzz $(or $(FUZZ_SECONDS),3600) $(TARGETS)

fuzz-short: ## each of them for three seconds
	@packaging/setup test
	@cargo xtask fuzz 3

cluster: ## a Kubernetes of one node with Caisson in it, or the one that kubectl points at; ENV_FILES="a.env b.env": Secrets in its namespace
	@packaging/setup cluster
	@cargo xtask node-image
	@cargo xtask cluster-tools
	@cargo run --quiet --package caisson-local -- up $(addprefix --env-file ,$(ENV_FILES)) $(addprefix --namespace ,$(NAMESPACE))

cluster-down: ## nothing is left of it
	@cargo run --quiet --package caisson-local -- down

machine: ## QEMU and the guest's kernel from their sources: minutes, once
	@packaging/setup machine
	@cargo xtask machine

image: ## the guest image alone: target/dist/guest
	@packaging/setup machine
	@cargo xtask image

dist: ## what a node gets: target/dist
	@packaging/setup machine
	@cargo xtask dist

release: ## target/dist with the node image, the Debian package, SBOM, licences and checksums
	@packaging/setup machine
	@cargo xtask release

lint: ## format, lock files, clippy, shell syntax, length of prose, licences
	cargo fmt --all -- --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml -- --check
	cargo metadata --locked --format-version 1 >/dev/null
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package caisson-guest --features hostile -- -D warnings
	cargo clippy --manifest-path tests/fuzz/Cargo.toml --target-dir target -- -D warnings
	bash -n packaging/setup .ci/run
	@cargo xtask prose
	@$(MAKE) --no-print-directory deny

deny: ## licences, bans and sources of the dependencies
	@cargo xtask deny

clean: ## everything built; downloads and built tools too
	cargo clean

# Everything that the tests and the bench run on. One after the other, also under make -j.
.PHONY: ready
ready:
	@packaging/setup test
	@cargo xtask dist $(dist_flags)
	@cargo xtask test-tools

.PHONY: k8s-ready
k8s-ready:
	@packaging/setup test
	@packaging/setup cluster
	@cargo xtask dist $(dist_flags)
	@cargo xtask node-image --as-is
	@cargo xtask cluster-tools

.PHONY: node-ready
node-ready:
	@packaging/setup test
	@cargo xtask dist $(dist_flags)
	@cargo xtask test-tools --crictl
	@cargo xtask deb --as-is
