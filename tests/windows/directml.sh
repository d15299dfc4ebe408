#!/bin/bash
# Microsoft's own DirectML.dll in the Windows lab, on Mesa's software Vulkan: a d3d12.dll of ours over Debian's libvkd3d. Root.
#
#   directml.sh setup           make the lab (lab.sh), and add what Direct3D 12 needs
#   directml.sh run COMMAND…    as `lab.sh run`, in a Windows with a display and a Direct3D 12 adapter
#   directml.sh gate            set it up, make two small models and run the tests of tests/windows/directml there
set -euo pipefail
# shellcheck source=tests/windows/lab.sh
source "$(dirname "$0")/lab.sh"
next=forky # the Debian after trixie: its libvkd3d is new enough, and it wants that release's C library
next_packages="libc6 libc-bin libc6-dev libc-dev-bin libvkd3d1 libvkd3d-shader1 libvkd3d-dev libvkd3d-headers"
vulkan_packages="xvfb mesa-vulkan-drivers libvulkan1 wine64-tools libwine-dev gcc g++"

setup_directml() {
    bash "$here/lab.sh" setup || exit $?
    exec 9>"$lab/lock"
    flock 9
    step vulkan "$(cat "$lab/root.done") $vulkan_packages $next $next_packages" add_vulkan
    step d3d12 "$(cat "$lab/vulkan.done" "$here"/directml/d3d12/* "$here/directml/enter.sh")" build_d3d12
    step directml-prefix "$(cat "$lab/d3d12.done" "$lab/prefix.done") $(declare -f make_directml_prefix)" make_directml_prefix
}

add_vulkan() {
    local mirror packages=$vulkan_packages name
    mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' "$root/etc/apt/sources.list" | head -1)
    echo "deb $mirror $next main" >"$root/etc/apt/sources.list.d/next.list"
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 50\n' $next >"$root/etc/apt/preferences.d/next"
    for name in $next_packages; do packages="$packages $name/$next"; done
    chroot "$root" apt-get -q -o Acquire::Check-Valid-Until=false update >"$lab/vulkan.log" 2>&1 || fail "apt-get, see $lab/vulkan.log"
    # shellcheck disable=SC2086
    chroot "$root" apt-get install -y -q --no-install-recommends $packages >>"$lab/vulkan.log" 2>&1 || fail "apt-get, see $lab/vulkan.log"
    chroot "$root" apt-get clean
}

build_d3d12() {
    rm -rf "$root/lab/d3d12"
    cp -r "$here/directml/d3d12" "$root/lab/d3d12"
    install -m755 "$here/directml/enter.sh" "$root/lab/directml"
    chroot "$root" sh -e -c '
        cd /lab/d3d12
        winegcc -shared -O2 -Wall -I/usr/include/vkd3d d3d12.spec d3d12.c -o d3d12.dll.so -ldxgi -lvkd3d
        strip d3d12.dll.so'
}

make_directml_prefix() {
    rm -rf "$root/home/coe/.wine-directml"
    enter /lab/directml sh -c '
        wine=/usr/lib/wine/wine64
        timeout 120 $wine wineboot -i
        timeout 60 $wine reg add "HKCU\\Software\\Wine\\Direct3D" /v renderer /d vulkan /f
        timeout 60 $wine winecfg -v win10
        cp /lab/d3d12/d3d12.dll.so "$WINEPREFIX/drive_c/windows/system32/d3d12.dll"
        timeout 60 /usr/lib/wine/wineserver64 -w' </dev/null >"$lab/directml-prefix.log" 2>&1
}

gate() {
    local models
    if ! timeout 1500 bash "$0" setup </dev/null; then
        echo "DirectML is not tested here"
        [ "${CI:-}" != true ]
        return
    fi
    models=$lab/directml-models/$(cd "$checkout" && cat "$here/directml/make_models.py" coe_cli/core/providers/*.py $(git ls-files '*importing*.py') | sha256sum | cut -c1-16)
    [ -e "$models/tiny-b" ] || { rm -rf "$lab/directml-models"; mkdir -p "$models"; timeout 600 "$python" "$here/directml/make_models.py" "$models" </dev/null; }
    COE_MODELS_DIR=$models bash "$0" run timeout 1800 python -m pytest -c tests/windows/directml/pytest.ini tests/windows/directml "$@" </dev/null
}

case ${1:-} in
    setup) setup_directml ;;
    gate) shift; gate "$@" ;;
    run)
        [ -e "$lab/directml-prefix.done" ] || fail "run: $0 setup"
        shift
        run /lab/directml "$@"
        ;;
    *) sed -n '2,7p' "$0"; exit 2 ;;
esac
