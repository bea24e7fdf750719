#!/bin/bash
# Installs what ipsec-gw needs on Debian 12/13 or Ubuntu 24.04: system packages, a Python environment that sees
# Debian's bcc, and the compiled dock. Idempotent: what is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")"

packages=(
	python3-bpfcc python3-venv            # BCC and the interpreter that it belongs to
	clang libbpf-dev libbpf1 linux-libc-dev   # the dock
	iproute2 nftables ethtool kmod ca-certificates make
	nmap                                  # port scans, for the tests of screens
	strongswan-swanctl charon-systemd libstrongswan-standard-plugins libcharon-extra-plugins   # the lab's gateways
	frr                                   # a routing protocol for them
	qemu-system-x86 busybox-static cpio   # the lab's VM, for kernels without ESP
)
case $(dpkg --print-architecture) in
	amd64) flavour=amd64 ;;
	arm64) flavour=arm64 ;;
	*) flavour=$(dpkg --print-architecture) ;;
esac
. /etc/os-release
case $ID in
	debian) kernel=(linux-image-"$flavour" linux-headers-"$flavour") ;;
	ubuntu) kernel=(linux-image-generic linux-headers-generic) ;;
	*) echo "setup: $PRETTY_NAME is not supported: Debian 12, Debian 13 and Ubuntu 24.04 are" >&2; exit 1 ;;
esac
# Headers for BCC: the running kernel's own, else any distribution kernel's (the programs use few of them). The image is
# for the lab's VM.
packages+=("${kernel[@]}")

missing=()
for package in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
	if ((EUID)); then
		echo "setup: these packages are missing and only root can install them: ${missing[*]}" >&2
		echo "setup: run 'sudo apt-get install ${missing[*]}' or 'sudo make setup'" >&2
		exit 1
	fi
	echo "setup: installing ${missing[*]}"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	# A service that starts by itself would take UDP 500 on this machine: the lab starts its own.
	policy=/usr/sbin/policy-rc.d
	if [[ ! -e $policy ]]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"
		trap 'rm -f "$policy"' EXIT
	fi
	{ apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		echo "setup: apt-get failed (whole log: $log)" >&2
		exit 1
	}
	rm -f "$log"
fi

# The environment: made anew when the project's dependencies change.
stamp=.venv/.setup-$(sha256sum pyproject.toml setup.sh | sha256sum | cut -c1-16)
if [[ ! -e $stamp ]]; then
	echo "setup: Python environment"
	rm -rf .venv
	/usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	.venv/bin/python -c 'import bcc' || { echo "setup: Debian's python3-bpfcc is not usable" >&2; exit 1; }
	touch "$stamp"
fi

dock=xdp_steer/bpf/dock.bpf
if [[ ! -e $dock.o || $dock.c -nt $dock.o ]]; then
	echo "setup: compiling the dock"
	clang -O2 -g -Wall -Werror -target bpf -I"/usr/include/$(uname -m)-linux-gnu" -c "$dock.c" -o "$dock.o"
fi
# Where programs and maps are pinned. systemd mounts it at boot; containers and small systems have it not.
if ((EUID == 0)) && ! mountpoint -q /sys/fs/bpf; then
	mount -t bpf bpf /sys/fs/bpf || echo "setup: no bpffs at /sys/fs/bpf: what needs BPF will say so" >&2
fi
# Compiled Python for the lab's VM, where importing from source is slow; harmless elsewhere.
.venv/bin/python -m compileall -q ipsec_gw xdp_steer vpp_conf
