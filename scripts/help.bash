# For the scripts beside it, which source it first: `--help` or `-h` prints the comment at the head of the script, and
# nothing is started. Options of train.py: python train.py --help_all
for word in "$@"; do
    case $word in
        -h | --help)
            sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[1]}"
            exit 0
            ;;
    esac
done

# Tell whether a run's folder holds a training state to resume from.
has_state() { [ -e "$1/latest_state.pth" ] || [ -e "$1/previous_state.pth" ]; }

# Print the absolute path of a data set, whether or not it is there: train.py reports one that is missing.
data_set_path() {
    if [ -e "$1" ]; then
        realpath -- "$1"
    else
        case $1 in
            /*) echo "$1" ;;
            *) echo "$PWD/$1" ;;
        esac
    fi
}

# Print the interpreter of the project's commands, in its folder; where there is none, say how to get one.
project_python() {
    local python=${PYTHON:-.venv/bin/python}
    if ! command -v "$python" >/dev/null; then
        echo "error: $python: no such program; run first: bash scripts/setup.sh" >&2
        return 2
    fi
    echo "$python"
}

# The file of --config lies where the command was typed, and the scripts change to the project's folder.
words=() before=""
for word in "$@"; do
    case $before/$word in
        --config/*) word=$(data_set_path "$word") ;;
        */--config=*) word=--config=$(data_set_path "${word#*=}") ;;
    esac
    words+=("$word") before=$word
done
set -- ${words[@]+"${words[@]}"}
