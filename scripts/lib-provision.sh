# shellcheck shell=bash
# What the provisioning scripts share: their options, and services that run under systemd or without it.
# Sourced after lib.sh. A script declares its options and their defaults in the associative array `options`.

systemd=no
[ ! -d /run/systemd/system ] || systemd=yes

# parse_options ARGUMENT…: fills `options` from --name value, and knows --no-systemd and --help.
parse_options() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --no-systemd) systemd=no ;;
            --*)
                [[ -v options[${1#--}] ]] || die "unknown option $1: see scripts/${0##*/} --help"
                [ $# -ge 2 ] || die "$1 needs a value"
                options[${1#--}]=$2
                shift
                ;;
            *) die "unknown argument $1: see scripts/${0##*/} --help" ;;
        esac
        shift
    done
    mkdir -p "${options[state-dir]}" 2>/dev/null || die "cannot write ${options[state-dir]}: run as root, or name another --state-dir"
}

# need_credentials: the store's credentials are in the environment, where boto3 looks for them.
need_credentials() {
    if [ -z "${AWS_ACCESS_KEY_ID:-}" ] || [ -z "${AWS_SECRET_ACCESS_KEY:-}" ]; then
        die "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to the store's credentials"
    fi
    export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
}

# wait_until SECONDS COMMAND…: repeats the command until it succeeds; fails when the time is over.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.5
    done
}

# start_service NAME COMMAND…: (re)starts the command as the service litereplica-NAME, with the credentials of
# the environment. Without systemd it is a background process, with its pid in NAME.pid and its log in NAME.log.
start_service() {
    local name=$1
    shift
    if [ "$systemd" = yes ]; then
        start_unit "litereplica-$name.service" "$@"
        return
    fi
    local pid_file=${options[state-dir]}/$name.pid log=${options[state-dir]}/$name.log
    stop_background "$pid_file" "$1"
    nohup "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    say "started $name: pid $!, log $log"
}

# stop_background PID_FILE PROGRAM: ends the process that the file names, if it still is that program.
stop_background() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF "$2"; then
        end_process "$pid"
    fi
    rm -f "$1"
}

start_unit() {
    local unit=$1 environment=${options[state-dir]}/credentials.env command='' argument
    shift
    for argument in "$@"; do
        argument=${argument//\\/\\\\}
        argument=${argument//\"/\\\"}
        argument=${argument//%/%%}
        command+=" \"${argument//\$/\$\$}\""
    done
    if [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
        (
            umask 077
            printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" >"$environment"
        )
    fi
    as_root tee "/etc/systemd/system/$unit" >/dev/null <<END
[Unit]
Description=litereplica (${unit%.service})
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile=-$environment
ExecStart=$command
Restart=on-failure
RestartPreventExitStatus=7
RestartSec=2

[Install]
WantedBy=multi-user.target
END
    as_root systemctl daemon-reload
    as_root systemctl enable --quiet "$unit"
    as_root systemctl restart "$unit"
    say "started $unit: journalctl -u $unit"
}

# show_log NAME: the last lines that the service has written, to stderr.
show_log() {
    if [ "$systemd" = yes ]; then
        as_root journalctl --no-pager --lines 20 --unit "litereplica-$1" >&2 || true
    else
        tail -n 20 "${options[state-dir]}/$1.log" >&2 || true
    fi
}
