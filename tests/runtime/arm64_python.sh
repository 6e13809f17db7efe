#!/usr/bin/env bash
# A folder -> FOLDER/python, a CPython for 64-bit ARM with numpy, which qemu runs: for tests of what devices get.
#
# It is Debian's own, unpacked and not installed: no root, nothing of this system's package lists is changed. The
# interpreter takes the script for itself (-0), so the processes that it starts are emulated too.
set -euo pipefail
root=${1:?a folder}
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
mkdir -p "$root"/{system,site,lists/partial,debs/archives/partial}
root=$(realpath "$root")
apt=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$root/lists"
    -oDir::Cache="$root/debs" -oDir::State::status=/dev/null -oAPT::Sandbox::User=root)
only=(--recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)

apt-get "${apt[@]}" update -qq
packages=$(apt-cache "${apt[@]}" depends "${only[@]}" python3 libstdc++6 | grep '^[a-z]' | sed 's/:.*//' | sort -u)
(cd "$root/debs" && apt-get "${apt[@]}" download -qq $packages)
for package in "$root"/debs/*.deb; do dpkg -x "$package" "$root/system"; done
rm -rf "$root/lists" "$root/debs"
if [ ! -e "$root/system/lib" ]; then ln -s usr/lib "$root/system/lib"; fi # where Debian has merged them

version=$(basename "$(readlink "$root/system/usr/bin/python3")" | sed 's/python//')
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$root/wheels" \
    --python-version "$version" --implementation cp --platform manylinux2014_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 numpy
python3 -m zipfile -e "$root"/wheels/numpy-*.whl "$root/site"
cat >"$root/python" <<END
#!/bin/bash
exec $qemu -cpu "\${QEMU_PROCESSOR:-max}" -0 "$root/python" -L "$root/system" -E PYTHONHOME="$root/system/usr" \\
    -E PYTHONPATH="$root/site\${PYTHONPATH:+:\$PYTHONPATH}" "$root/system/usr/bin/python$version" "\$@"
END
chmod +x "$root/python"
