# shellcheck shell=bash
# What the provisioning scripts share: their options, and services that run under systemd or without it, each as a user
# of its own. Sourced after lib.sh. A script declares its options and their defaults in the associative array `options`.

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
    local name
    for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
        [ -n "${!name:-}" ] || die "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to the store's credentials"
        need_plain "$name"
    done
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

# need_plain NAME: the variable has characters only that need no quotes in a JSON document or a unit's environment.
need_plain() {
    [[ ${!1} =~ ^[A-Za-z0-9/+=._-]+$ ]] || die "$1 has characters other than letters, digits and /+=._-: choose another"
}

# service_user NAME: the user of a service. root makes a system user of that name; anybody else is it themselves.
service_user() {
    if [ "$(id -u)" -ne 0 ]; then
        id -un
        return
    fi
    id "$1" >/dev/null 2>&1 ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$1"
    echo "$1"
}

# as_user USER COMMAND…: runs a command as a user, without the rights of root and without a way to get any.
as_user() {
    local become=()
    become_user "$1"
    "${become[@]}" "${@:2}"
}

# become_user USER: puts into `become`, an array of the caller, what runs a command as the user.
become_user() {
    become=()
    [ "$1" = "$(id -un)" ] ||
        become=(setpriv --reuid "$1" --regid "$(id -g "$1")" --init-groups --inh-caps=-all --no-new-privs --)
}

# need_program USER: the user can run what scripts/setup installed.
need_program() {
    (cd / && as_user "$1" "$VENV/bin/python" -c '' 2>/dev/null) ||
        die "the user $1 cannot run $VENV/bin/python: move $ROOT to where every user can read it, such as /opt"
}

# own_directory USER DIRECTORY: the user can write to the directory, and nobody else can read it if it is made now.
own_directory() {
    if [ ! -d "$2" ]; then
        mkdir -p "$(dirname "$2")"
        mkdir -m 0700 "$2"
        [ "$1" = "$(id -un)" ] || chown "$1:" "$2"
    fi
    as_user "$1" test -w "$2" || die "the user $1 cannot write to $2: run 'chown -R $1: $2' as root"
}

# write_secret USER FILE: writes stdin to a file that only the user can read, from its first byte on.
write_secret() {
    local made
    made=$(mktemp "$2.XXXXXX") # has mode 0600
    cat >"$made"
    [ "$1" = "$(id -un)" ] || chown "$1:" "$made"
    mv -f "$made" "$2"
}

# start_service NAME USER WRITES COMMAND…: (re)starts the command as the service litereplica-NAME, with the credentials
# of the environment. WRITES are the directories that it writes to, in quotes; `mount` for a service that mounts. Without systemd it
# is a background process, with its pid in NAME.pid and its log in NAME.log.
start_service() {
    local name=$1 user=$2 writes=$3
    shift 3
    need_program "$user"
    if [ "$systemd" = yes ]; then
        start_unit "litereplica-$name" "$user" "$writes" "$@"
        return
    fi
    local pid_file=${options[state-dir]}/$name.pid log=${options[state-dir]}/$name.log
    stop_background "$pid_file" "$1"
    local become
    become_user "$user"
    (
        umask 077
        cd /
        exec nohup "${become[@]}" "$@" >>"$log" 2>&1 </dev/null
    ) &
    echo $! >"$pid_file"
    say "started $name: pid $!, log $log"
}

# service_runs NAME: the service has not ended, as far as that is known.
service_runs() {
    [ "$systemd" = yes ] || kill -0 "$(cat "${options[state-dir]}/$1.pid")" 2>/dev/null
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
    local unit=$1 environment=${options[state-dir]}/$1.env made
    if [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
        printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
            write_secret "$(id -un)" "$environment" # systemd reads it, not the service
    fi
    made=$(mktemp -d)
    write_unit "$made" "$unit" "$2" "$3" "$environment" "${@:4}"
    as_root cp --recursive --no-preserve=ownership "$made/." /etc/systemd/system/
    rm -r "$made"
    as_root systemctl daemon-reload
    as_root systemctl enable --quiet "$unit.service"
    as_root systemctl restart "$unit.service"
    say "started $unit: journalctl -u $unit"
}

# write_unit DIRECTORY UNIT USER WRITES ENVIRONMENT_FILE COMMAND…: the unit of deploy/systemd for a writer, or for a
# mount, and a drop-in with what is particular to this one. WRITES as for start_service.
write_unit() {
    local directory=$1 unit=$2 user=$3 writes=$4 environment=$5 from=litereplica.service
    local drop_ins=$directory/$unit.service.d
    shift 5
    mkdir -p "$drop_ins"
    if [ "$writes" = mount ]; then
        from=litereplica-mount@.service
        [ "$user" = root ] || install -m 0644 "$ROOT/deploy/systemd/mount-as-user.conf" "$drop_ins/10-user.conf"
    fi
    install -m 0644 "$ROOT/deploy/systemd/$from" "$directory/$unit.service"
    {
        printf '[Unit]\nDescription=litereplica (%s)\n\n' "$unit"
        printf '[Service]\nUser=%s\nEnvironmentFile=\nEnvironmentFile=-%s\n' "$user" "$environment"
        printf 'ExecStart=\nExecStart=%s\n' "$(quoted_command "$@")"
        [ "$writes" = mount ] || printf 'ReadWritePaths=\nReadWritePaths=%s\n' "${writes//%/%%}"
        [ "$1" = "$VENV/bin/litereplica" ] || printf 'Type=exec\nWatchdogSec=0\nExecReload=\n'
    } >"$drop_ins/20-provisioned.conf"
    chmod 0755 "$drop_ins"
    chmod 0644 "$drop_ins/20-provisioned.conf"
}

# quoted_command WORD…: the command as a unit has it.
quoted_command() {
    local argument command=''
    for argument in "$@"; do
        argument=${argument//\\/\\\\}
        argument=${argument//\"/\\\"}
        argument=${argument//%/%%}
        command+=" \"${argument//\$/\$\$}\""
    done
    printf '%s' "${command# }"
}

# show_log NAME: the last lines that the service has written, to stderr.
show_log() {
    if [ "$systemd" = yes ]; then
        as_root journalctl --no-pager --lines 20 --unit "litereplica-$1" >&2 || true
    else
        tail -n 20 "${options[state-dir]}/$1.log" >&2 || true
    fi
}
