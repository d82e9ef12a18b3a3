#!/usr/bin/env bash
# Tests on an emulated ARM64 CPU (Cortex-A76, as in a Raspberry Pi 5), with the real aarch64 wheels. Debian or Ubuntu,
# as root for apt-get and debootstrap; about 12 minutes on one core. It says nothing about speed.
# Usage: .ci/test_arm64.sh [ARGUMENTS OF PYTHON]; CPU=max,pauth-impdef=on selects another CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/.cache/arm64
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
cpu=${CPU:-cortex-a76}

version() { qemu-aarch64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p'; }

# qemu-user 7.2 of Debian 12 crashes when onnxruntime is imported.
if [ "$(version || true)" = "" ] || [ "$(version)" -lt 10 ]; then
  . /etc/os-release
  if [ "$VERSION_CODENAME" = bookworm ]; then
    echo "deb $mirror bookworm-backports main" > /etc/apt/sources.list.d/backports.list
    apt-get update -q
    apt-get install -q -y --no-install-recommends -t bookworm-backports qemu-user
  else
    apt-get update -q
    apt-get install -q -y --no-install-recommends qemu-user
  fi
  if [ "$(version)" -lt 10 ]; then
    echo "qemu-user $(version) is installed, 10 or newer is needed" >&2
    exit 1
  fi
fi

# An unpacked Debian with Python: no second stage, no chroot, no binfmt.
if [ ! -e "$home/root.done" ]; then
  command -v debootstrap > /dev/null || apt-get install -q -y --no-install-recommends debootstrap
  rm -rf "$home/root"
  mkdir -p "$home"
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libstdc++6,libgomp1 trixie "$home/root" "$mirror" > "$home/debootstrap.log"
  for package in "$home"/root/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$home/root"; done
  touch "$home/root.done"
fi

# Packages must not be stored below the root: onnxruntime sees other paths there.
if [ ! -e "$home/site.done" ] || [ pyproject.toml -nt "$home/site.done" ]; then
  rm -rf "$home/site"
  platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64
             --platform manylinux2014_aarch64)
  "${PYTHON:-python3}" -m pip install -q --target "$home/site" --only-binary=:all: --implementation cp \
    --python-version 3.13 "${platforms[@]}" . pytest hypothesis
  rm -rf "$home/site/ouro_edge"  # the checkout is tested
  touch "$home/site.done"
fi

arm() {
  env -u PYTHONPATH ORT_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 \
    qemu-aarch64 -cpu "$cpu" -E "PYTHONPATH=$PWD:$home/site" -L "$home/root" "$home/root/usr/bin/python3.13" "$@"
}

if [ $# -gt 0 ]; then
  arm "$@"
  exit
fi
answer=$(arm -m ouro_edge run -p "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?")
echo "$answer"
[ "$answer" = Cleo ]
# Every model family against what its published code computed, every number format against its stored weights.
tests=(
  tests/runtime/test_zero_points.py tests/arch/test_reference.py tests/arch/test_rope.py tests/runtime/test_golden.py
  tests/runtime/test_laws.py tests/runtime/test_quantised.py tests/runtime/test_kv.py tests/test_run_gguf.py
  tests/gguf/test_formats.py tests/gguf/test_coded.py::test_logits_are_those_of_the_stored_weights tests/test_nano.py
  tests/export/test_nanbeige.py::test_every_loop_count_and_greedy_tokens
  tests/export/test_hrm_text.py::test_logits_and_greedy_tokens
  "tests/runtime/test_prefix.py::test_golden[onnx-0]" "tests/runtime/test_prefix.py::test_golden[parallel-1]"
  tests/export/test_raven.py::test_every_depth_and_greedy_tokens
  "tests/export/test_raven.py::test_quantised_weights[raven-tiny-int4]"
  "tests/export/test_raven.py::test_quantised_weights[retrofit-olmo-tiny-int8]"
  tests/fitting/test_equalize.py::test_a_model_in_eight_bits_is_closer_to_its_checkpoint
  tests/cli/test_verify.py::test_an_error_smaller_than_the_rounding_of_activations_is_seen
)
arm -m pytest -q -p no:cacheprovider "${tests[@]}"
