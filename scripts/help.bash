# For the scripts beside it, which source it first: `--help` or `-h` prints the comment at the head of the script, and
# nothing is started. Options of train.py: python train.py --help
for word in "$@"; do
    case $word in
        -h | --help)
            sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[1]}"
            exit 0
            ;;
    esac
done
