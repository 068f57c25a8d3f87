# Shared by tpu.sh, slurm.sh and gke.sh: settings, quoting, running or only printing.
# Bash 3.2 is enough (macOS), so no associative arrays and no ${var@Q}.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that source this file

readonly EXIT_WRONG_INPUT=2 EXIT_TRY_AGAIN=75 # as in normjax/cli/main.py
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Every setting is a variable conf_KEY with its default; example.conf says what they mean.
{
  conf_name='' conf_command='' conf_bucket='' conf_mount=/mnt/bucket
  conf_zone='' conf_project='' conf_accelerator='' conf_version=''
  conf_spot=false conf_reserved=false conf_queued=false conf_queue_valid=''
  conf_create_args='' conf_ssh_args=''
  conf_repo='' conf_ref='' conf_extra=tpu conf_setup_command=''
  conf_poll_interval=30 conf_wait_timeout=86400 conf_ready_timeout=600
  conf_stop_timeout=120 conf_max_restarts=0
  conf_worker='' conf_lines=50 conf_follow=false conf_force=false conf_dry_run=false
  conf_slurm_nodes=1 conf_slurm_gpus=1 conf_slurm_time=24:00:00 conf_slurm_warn=300
  conf_slurm_partition='' conf_slurm_account='' conf_slurm_args=''
  conf_image='' conf_gke_accelerator='' conf_gke_topology='' conf_gke_chips=''
  conf_gke_hosts='' conf_gke_slices=1 conf_gke_max_restarts=10
  conf_gke_namespace=default conf_gke_service_account=default
}
KEYS=" ${!conf_@} "
KEYS=${KEYS// conf_/ }

note() { printf '%s\n' "$*" >&2; }
die() { # MESSAGE [EXIT_CODE]
  note "error: $1"
  exit "${2:-1}"
}
wrong() { die "$1" "$EXIT_WRONG_INPUT"; }

# The words of $2... at most two edits away from $1, nearest first.
near() {
  printf '%s\n' "$@" | awk '
    function min(a, b) { return a < b ? a : b }
    function edits(a, b,    i, j, d, cost) {
      for (i = 0; i <= length(a); i++) d[i, 0] = i
      for (j = 0; j <= length(b); j++) d[0, j] = j
      for (i = 1; i <= length(a); i++) for (j = 1; j <= length(b); j++) {
        cost = substr(a, i, 1) != substr(b, j, 1)
        d[i, j] = min(min(d[i-1, j], d[i, j-1]) + 1, d[i-1, j-1] + cost)
      }
      return d[length(a), length(b)]
    }
    NR == 1 { word = $0; next }
    { n = edits(word, $0); if (n <= 2 && n < length(word)) print n, $0 }
  ' | sort -n | awk '{ printf "%s%s", sep, $2; sep = " or " }'
}

unknown() { # WHAT WORD ALLOWED...: one line, with near matches if there are any
  local what=$1 word=$2 guess
  shift 2
  guess=$(near "$word" "$@")
  if [ -n "$guess" ]; then
    wrong "unknown $what '$word': did you mean $guess?"
  fi
  wrong "unknown $what '$word'; there are: $*"
}

is_key() { case $KEYS in *" $1 "*) ;; *) return 1 ;; esac }
value_of() { # KEY: sets REPLY
  local variable=conf_$1
  REPLY=${!variable}
}

set_key() { # KEY VALUE WHERE
  local key=$1 value=$2 where=$3
  # shellcheck disable=SC2086  # a list of words
  is_key "$key" || unknown "setting in $where:" "$key" $KEYS
  case $key in # the settings that are either true or false
    spot | reserved | queued | follow | force | dry_run)
      case $value in true | false) ;; *)
        wrong "$where: $key must be true or false, not '$value'" ;;
      esac ;;
    poll_interval | *_timeout | lines | *max_restarts | slurm_nodes | slurm_gpus | \
      slurm_warn | gke_chips | gke_hosts | gke_slices)
      [[ $value =~ ^[0-9]+$ || -z $value && $key == gke_* ]] ||
        wrong "$where: $key must be a whole number, not '$value'" ;;
  esac
  printf -v "conf_$key" %s "$value"
}

trim() { # sets REPLY
  REPLY=${1#"${1%%[![:space:]]*}"}
  REPLY=${REPLY%"${REPLY##*[![:space:]]}"}
}

# Lines of key=value, not sourced: a value is the rest of its line, nothing in it is
# expanded here, and one pair of quotes around all of it is dropped.
read_conf() {
  local file=$1 line key value number=0
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    trim "$line"
    line=$REPLY
    case $line in
      '' | '#'*) continue ;;
      *=*) ;;
      *) wrong "$file:$number: expected key=value, found '$line'" ;;
    esac
    trim "${line%%=*}"
    key=$REPLY
    trim "${line#*=}"
    value=$REPLY
    case $value in
      \"*\") case ${value:1:${#value}-2} in *\"*) ;; *) value=${value:1:${#value}-2} ;; esac ;;
      \'*\') case ${value:1:${#value}-2} in *\'*) ;; *) value=${value:1:${#value}-2} ;; esac ;;
    esac
    set_key "$key" "$value" "$file:$number"
  done <"$file"
}

# Reads --conf=FILE (or launch.conf where it exists), then NORMJAX_LAUNCH_KEY of the
# environment, then --key=value, each over the one before. What is no flag goes to WORDS,
# what stands after -- to ARGS.
parse() {
  local conf='' variable key word
  local flags=()
  WORDS=() ARGS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift && ARGS=("$@") && break ;;
      --conf=*) conf=${1#--conf=} ;;
      --conf) wrong "--conf needs a file: --conf=FILE" ;;
      -h | --help) WORDS+=(help) ;;
      --*) flags+=("${1#--}") ;;
      -*) wrong "unknown flag '$1': flags are --key=value" ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
  if [ -n "$conf" ]; then
    [ -r "$conf" ] || wrong "no configuration file '$conf': copy tpu_scripts/example.conf"
    read_conf "$conf"
  elif [ -r launch.conf ]; then
    read_conf launch.conf
  fi
  for variable in "${!NORMJAX_LAUNCH_@}"; do
    key=$(printf %s "${variable#NORMJAX_LAUNCH_}" | tr '[:upper:]' '[:lower:]')
    set_key "$key" "${!variable}" "the environment"
  done
  for word in ${flags[@]+"${flags[@]}"}; do
    key=${word%%=*}
    key=${key//-/_}
    case $word in
      *=*) set_key "$key" "${word#*=}" "flags" ;;
      *)
        # shellcheck disable=SC2086  # a list of words
        is_key "$key" || unknown "setting in flags:" "$key" $KEYS
        value_of "$key"
        case $REPLY in
          true | false) set_key "$key" true flags ;;
          *) wrong "--$key needs a value: --$key=VALUE" ;;
        esac ;;
    esac
  done
}

need() { # KEY...: each must have a value
  local key missing=''
  for key in "$@"; do
    value_of "$key"
    [ -n "$REPLY" ] || missing="$missing, $key"
  done
  [ -z "$missing" ] || wrong "no value for ${missing#, }: set it in launch.conf, or as --${missing##* }=..."
}

check() { # KEY REGEX HINT: the value, if there is one, must match
  value_of "$1"
  [ -z "$REPLY" ] || [[ $REPLY =~ ^($2)$ ]] || wrong "$1 '$REPLY' is $3"
}

# Sets REPLY to a word that every POSIX shell, here or on a worker, reads back as $1.
# (printf %q writes $'...' for a newline, which only some shells know.)
quote() {
  local LC_ALL=C rest=$1
  case $1 in
    '' | =* | *[!A-Za-z0-9_@%+=:,./-]*)
      REPLY="'"
      while [[ $rest == *"'"* ]]; do
        REPLY="$REPLY${rest%%"'"*}'\\''"
        rest=${rest#*"'"}
      done
      REPLY="$REPLY$rest'" ;;
    *) REPLY=$1 ;;
  esac
}

quoted() { # sets REPLY to all words as one line of shell
  local line='' word flag
  for word in "$@"; do
    flag=''
    if [[ $word =~ ^--[a-z-]+= ]]; then # --flag='a b' reads better than '--flag=a b'
      flag=${BASH_REMATCH[0]}
    fi
    quote "${word#"$flag"}"
    [ -z "$flag" ] || [ "$REPLY" != "''" ] || REPLY=''
    line="$line $flag$REPLY"
  done
  REPLY=${line# }
}

dry() { [ "$conf_dry_run" = true ]; }

run() { # the command, or with --dry_run only its text
  quoted "$@"
  if dry; then
    printf '%s\n' "$REPLY"
  else
    note "+ $REPLY"
    "$@"
  fi
}

# Sets COMMAND to what shall run: the words after --, else the setting `command`, which is
# a line of shell.
# Whether the command writes to a bucket: mounted, or by its address.
has_bucket() {
  [ -n "$conf_bucket" ] || [[ "${COMMAND[*]}" == *gs://* ]]
}

command_words() {
  if [ "${#ARGS[@]}" -gt 0 ]; then
    COMMAND=("${ARGS[@]}")
  elif [ -n "$conf_command" ]; then
    COMMAND=(bash -c "$conf_command")
  else
    wrong "nothing to run: set command=... in launch.conf, or end with -- COMMAND ARG..."
  fi
}
