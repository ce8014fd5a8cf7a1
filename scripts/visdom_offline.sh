#!/usr/bin/env bash
# Install the scripts of visdom's dashboard from npm packages, for machines that cannot reach the internet. Otherwise
# visdom downloads them at its first start.
#   bash scripts/visdom_offline.sh                  # where npm reaches a registry
#   bash scripts/visdom_offline.sh --pack FOLDER    # elsewhere: only collect the packages, to be carried over
#   bash scripts/visdom_offline.sh --from FOLDER    # on the machine without a network
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
folder=${2:-}
case $folder in
"" | /*) ;;
*) folder=$PWD/$folder ;; # as the caller sees it, not the checkout
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What visdom 0.3 wants: npm package, file in it, place under visdom/static.
wanted=(
    "jquery@3.1.1 dist/jquery.min.js js/jquery.min.js"
    "bootstrap@3.3.7 dist/js/bootstrap.min.js js/bootstrap.min.js"
    "bootstrap@3.3.7 dist/css/bootstrap.min.css css/bootstrap.min.css"
    "bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.eot fonts/glyphicons-halflings-regular.eot"
    "bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.woff2 fonts/glyphicons-halflings-regular.woff2"
    "bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.woff fonts/glyphicons-halflings-regular.woff"
    "bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.ttf fonts/glyphicons-halflings-regular.ttf"
    "bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.svg fonts/glyphicons-halflings-regular.svg#glyphicons_halflingsregular"
    "react@16.2.0 umd/react.production.min.js js/react-react.min.js"
    "react-dom@16.2.0 umd/react-dom.production.min.js js/react-dom.min.js"
    "react-modal@3.1.10 dist/react-modal.min.js js/react-modal.min.js"
    "plotly.js-dist-min@2.11.1 plotly.min.js js/plotly-plotly.min.js"
    "sjcl@1.0.7 sjcl.js js/sjcl.js"
    "layout-bin-packer@1.4.0 dist/layout-bin-packer.js.map js/layout-bin-packer.js.map"
    "layout-bin-packer@1.4.0 dist/layout-bin-packer.js js/layout_bin_packer.js"
    "d3@3.5.17 d3.min.js js/d3.v3.min.js"
    "d3-selection-multi@1.0.1 build/d3-selection-multi.js js/d3-selection-multi.v1.js"
    "save-svg-as-png@1.4.17 lib/saveSvgAsPng.js js/saveSvgAsPng.js"
    "react-resizable@3.1.3 css/styles.css css/react-resizable-styles.css"
    "react-grid-layout@2.2.3 css/styles.css css/react-grid-layout-styles.css"
    "classnames@2.2.5 index.js fonts/classnames"
    "mathjax@3.2.2 es5/tex-mml-svg.js js/mathjax/3.2.2/es5/tex-mml-svg.js"
)

fail() {
    echo "error: $*" >&2
    exit 1
}

check_python() {
    [ -x .venv/bin/python ] || fail "no .venv here; run bash scripts/setup.sh first"
}

# Download the packages into folder $1, as they come from npm; what is there already is kept. A package gets its name
# when it is complete.
pack() {
    command -v npm >/dev/null || fail "no npm here; install it (Debian: apt-get install npm), or see --pack above"
    local package archive
    for package in $(printf '%s\n' "${wanted[@]}" | cut -d' ' -f1 | sort -u); do
        archive=${package/@/-}.tgz
        if [ ! -f "$1/$archive" ]; then
            echo "packing $package"
            rm -rf "$1/.packing"
            mkdir "$1/.packing"
            (cd "$1/.packing" && npm pack --silent "$package" >/dev/null) || fail "npm pack $package failed"
            mv "$1/.packing/$archive" "$1/$archive"
            rmdir "$1/.packing"
        fi
    done
}

# Tell whether everything is in place already, for the visdom that is installed.
is_done() {
    local static line package file target
    static=$(static_folder)
    [ "$(cat "$static/version.built" 2>/dev/null)" = "$(visdom_version)" ] || return 1
    for line in "${wanted[@]}"; do
        read -r package file target <<<"$line"
        [ -s "$static/$target" ] || return 1
    done
}

static_folder() {
    .venv/bin/python -c 'from importlib.util import find_spec as f; print(f("visdom").submodule_search_locations[0])' |
        sed 's|$|/static|'
}

visdom_version() {
    .venv/bin/python -c 'from importlib import metadata; print(metadata.version("visdom"))'
}

# Copy the files out of the packages in folder $1 to where visdom looks for them.
place() {
    local static version line package file target archive
    static=$(static_folder)
    version=$(visdom_version)
    case $version in
    0.3.*) ;;
    *) fail "visdom $version is installed; this script knows what 0.3 wants: bring the list above up to date" ;;
    esac
    for line in "${wanted[@]}"; do
        read -r package file target <<<"$line"
        archive=$1/${package/@/-}.tgz
        [ -f "$archive" ] || fail "$archive is missing; collect it with --pack"
        mkdir -p "$(dirname "$static/$target")"
        tar --extract --gzip --to-stdout --file "$archive" "package/$file" >"$static/$target.new" 2>/dev/null ||
            { rm -f "$static/$target.new"; fail "no $file in $archive"; }
        mv "$static/$target.new" "$static/$target"
    done
    echo "$version" >"$static/version.built"
    echo "visdom $version has its scripts in $static"
}

case ${1:-} in
--pack)
    [ $# = 2 ] && [ -n "$folder" ] || fail "$1 needs a folder"
    mkdir -p "$folder"
    pack "$folder"
    ;;
--from)
    [ $# = 2 ] && [ -n "$folder" ] || fail "$1 needs a folder"
    [ -d "$folder" ] || fail "$folder: no such folder; make it with --pack where npm reaches a registry"
    check_python
    place "$folder"
    ;;
"")
    check_python
    if is_done; then
        echo "visdom already has its scripts"
        exit 0
    fi
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    pack "$folder"
    place "$folder"
    ;;
*) fail "unknown argument $1" ;;
esac
