#!/bin/bash
# WebGPU without a card: Mesa's software Vulkan, from Debian's packages, in a folder of its own. No root is needed.
#
#   webgpu.sh gate            set it up, make two small models, let their shaders be compiled, and run the tests of tests/webgpu
#   webgpu.sh run COMMAND…    run a command where WebGPU runs on that card
#
# Debian 12's own Mesa lacks what Dawn asks for, so there it comes from the backports. Compiled shaders are kept: compiling them takes a
# minute of a core the first time.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
lab=${COE_WEBGPU_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/coe-webgpu}
python=${PYTHON:-$checkout/.venv/bin/python}
key=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-16)

fail() { echo "WebGPU's software card cannot be set up: $*" >&2; exit 77; }

setup() {
    [ -e "$lab/done-$key" ] && return
    [ "$(uname -s)" = Linux ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "it needs Debian's apt-get"
    rm -rf "$lab"
    mkdir -p "$lab"/{lists,archives}/partial "$lab/root"
    echo "webgpu: Mesa's software Vulkan" >&2
    local options=(-q -o "Dir::State::Lists=$lab/lists" -o "Dir::Cache::Archives=$lab/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o Debug::NoLocking=1 -o Acquire::Retries=3 -o APT::Sandbox::User=)
    local suite=()
    if grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
        local mirror
        mirror=$(apt-cache policy | grep -oE 'https?://[^ ]+/debian ' | head -1 | tr -d ' ')
        printf "deb ${mirror:-http://deb.debian.org/debian} %s main\n" bookworm bookworm-backports >"$lab/sources.list"
        options+=(-o "Dir::Etc::SourceList=$lab/sources.list" -o Dir::Etc::SourceParts=/dev/null)
        suite=(-t bookworm-backports)
    fi
    {
        timeout 120 apt-get "${options[@]}" update
        timeout 300 apt-get "${options[@]}" -y --no-install-recommends --download-only "${suite[@]}" install mesa-vulkan-drivers libvulkan1
    } >"$lab/apt.log" 2>&1 || fail "apt-get, see $lab/apt.log: $(tail -1 "$lab/apt.log")"
    local file
    for file in "$lab"/archives/*.deb; do [ ! -e "$file" ] || dpkg -x "$file" "$lab/root"; done
    local driver
    driver=$(find "$lab/root/usr/lib" /usr/lib -name libvulkan_lvp.so 2>/dev/null | head -1)
    [ -n "$driver" ] || fail "the packages have no libvulkan_lvp.so"
    printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.0"}}\n' "$driver" >"$lab/icd.json"
    rm -rf "$lab/archives" "$lab/lists"
    touch "$lab/done-$key"
}

run() {
    local libraries
    libraries=$(dirname "$(find "$lab/root/usr/lib" -name 'libdrm.so.2' | head -1)" 2>/dev/null)
    env VK_DRIVER_FILES="$lab/icd.json" VK_ICD_FILENAMES="$lab/icd.json" LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
        MESA_SHADER_CACHE_DIR="$lab/shaders" ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 LP_NUM_THREADS=0 LP_NATIVE_VECTOR_WIDTH=256 "$@"
}

gate() {
    setup
    local models
    models=$lab/models-$(cd "$checkout" && cat tests/windows/directml/make_models.py tests/webgpu/*.py coe_cli/core/providers/*.py \
        $(git ls-files '*importing*.py') | sha256sum | cut -c1-16)
    export COE_WEBGPU_MODELS=$models
    if [ ! -e "$models/warm" ]; then
        rm -rf "$lab"/models-*
        mkdir -p "$models"
        "$python" tests/windows/directml/make_models.py "$models" webgpu
        echo "webgpu: compiling shaders" >&2
        local recorded
        for recorded in 0 1; do
            COE_GRAPH_CAPTURE=$recorded run timeout 900 "$python" tests/webgpu/greedy.py "$models/tiny-a" webgpu >"$lab/warm.log" 2>&1 \
                || { tail -3 "$lab/warm.log"; exit 1; }
        done
        touch "$models/warm"
    fi
    run timeout 900 "$python" -m pytest -q tests/webgpu "$@"
}

cd "$checkout"
case ${1:-} in
    gate) shift; gate "$@" ;;
    run) setup; shift; run "$@" ;;
    *) sed -n '2,5p' "$0"; exit 2 ;;
esac
