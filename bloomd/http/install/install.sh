#!/bin/sh
# Makes this machine a worker of a bloomd, which has written this script for it. Running it again brings it up to date.
#
# As root it installs to /opt/bloomd-worker, with a user bloomd-worker and a service of OpenRC or systemd; as anybody
# else to ~/.local/lib/bloomd-worker, without a service. BLOOMD_PREFIX is another place for the program, BLOOMD_ROOT a
# directory to be used instead of /. It changes no rights of anybody, and needs no tool but a shell and Python.

# shellcheck disable=SC2016,SC2089,SC2090 # what the server has written in is data: it may look like anything
bloomd_worker_install() {
	set -eu
	umask 077

	# @SETTINGS@

	say() { printf 'bloomd-worker: %s\n' "$*"; }

	die() {
		say "$*" >&2
		exit 1
	}

	have() { command -v "$1" >/dev/null 2>&1; }

	choose_paths() {
		ROOT=${BLOOMD_ROOT:-}
		if [ "$(id -u)" = 0 ]; then
			RUN_AS=bloomd-worker
			PREFIX=${BLOOMD_PREFIX:-$ROOT/opt/bloomd-worker}
			CONF=$ROOT/etc/bloomd-worker
			STATE=$ROOT/var/lib/bloomd-worker
			# They stand in the files of the service, which have quoting rules of their own.
			case $PREFIX$ROOT in
				*[!A-Za-z0-9/._+-]*) die "BLOOMD_PREFIX and BLOOMD_ROOT may have letters, digits and / . _ + - only" ;;
			esac
		else
			RUN_AS=
			PREFIX=${BLOOMD_PREFIX:-$ROOT$HOME/.local/lib/bloomd-worker}
			CONF=$ROOT$HOME/.config/bloomd-worker
			STATE=$ROOT$HOME/.local/share/bloomd-worker
		fi
		VENV=$PREFIX/venv
		CONFIG=$CONF/worker.yaml
		# Where the service finds the Claude CLI: its own installer puts it into the first of these.
		SERVICE_PATH=$STATE/.local/bin:/usr/local/bin:/usr/bin:/bin
	}

	find_python() {
		for PYTHON in python3 python3.14 python3.13 python3.12 python3.11; do
			if is_new_enough "$PYTHON"; then
				"$PYTHON" -I -c 'import ensurepip, venv' </dev/null 2>/dev/null ||
					die "$PYTHON has no venv module; install it first$(how_to python3-venv python3)"
				return
			fi
		done
		die "Python 3.11 or newer is needed, and there is none in PATH; install it first$(how_to 'python3 python3-venv' python3)"
	}

	is_new_enough() {
		"$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null
	}

	how_to() {
		if have apk; then
			printf ': apk add %s' "$2"
		elif have apt-get; then
			printf ': apt-get install %s' "$1"
		elif have dnf; then
			printf ': dnf install %s' "$2"
		fi
	}

	make_user() {
		if id "$RUN_AS" >/dev/null 2>&1; then return; fi
		say "making the user $RUN_AS"
		shell=$(command -v nologin || echo /bin/false)
		if have useradd; then
			useradd --system --user-group --no-create-home --home-dir "$STATE" --shell "$shell" "$RUN_AS"
		elif have addgroup && have adduser; then # those of busybox
			addgroup -S "$RUN_AS"
			adduser -S -D -H -h "$STATE" -s "$shell" -G "$RUN_AS" "$RUN_AS"
		else
			die "there is neither useradd nor adduser: make a user $RUN_AS with a group of this name, then run this again"
		fi
	}

	# All of them lie in directories that are root's: whoever runs as the worker cannot put a link in their place.
	make_directories() {
		(umask 022 && mkdir -p "$PREFIX" "$CONF" "$STATE")
		chmod 750 "$CONF" "$STATE"
		if [ -n "$RUN_AS" ]; then
			chown "root:$RUN_AS" "$CONF"
			chown "$RUN_AS:$RUN_AS" "$STATE"
		fi
	}

	make_venv() {
		if ! is_new_enough "$VENV/bin/python"; then
			(umask 022 && "$PYTHON" -m venv --clear "$VENV") </dev/null || die "$VENV could not be made"
		fi
	}

	# Gets the token, the program and the list of what it imports; and writes the configuration, unless it is there.
	fetch() (
		export SERVER WORKER CODE VERSION WHEEL WHEEL_SHA256 REQUIREMENTS REQUIREMENTS_SHA256 MAX_CONCURRENCY LABELS CONF STATE work
		"$VENV/bin/python" -I - <<'PYTHON'
import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request

env = os.environ
TOKEN, CONFIG = (os.path.join(env["CONF"], name) for name in ("token", "worker.yaml"))


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """What we send is for this server, and for no other that it names."""

    def redirect_request(self, *args):
        return None


opener = urllib.request.build_opener(NoRedirect)


def ask(method, path, body=None, token=None):
    headers = {"User-Agent": "bloomd-install/" + env["VERSION"]}
    if body is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(body).encode()
    if token is not None:
        headers["X-Runtime-API-Key"] = token
    request = urllib.request.Request(env["SERVER"] + path, body, headers, method=method)
    with opener.open(request, timeout=120) as answer:
        return answer.read()


def explained(error):
    if not isinstance(error, urllib.error.HTTPError):
        return str(getattr(error, "reason", error))
    try:
        return json.load(error)["error"]
    except (ValueError, KeyError, TypeError, OSError):
        return "it answered %d %s" % (error.code, error.reason)


def write(path, content):
    """Nobody but its owner ever reads it, unless its mode is changed afterwards."""
    new = path + ".new"
    if os.path.lexists(new):
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.rename(new, path)


def quoted(text):
    """A scalar of YAML, whatever the text."""
    plain = [c if " " <= c <= "~" and c not in '"\\' else "\\U%08x" % ord(c) for c in text]
    return '"' + "".join(plain) + '"'


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def token_is_good(token):
    try:
        ask("HEAD", PACKAGE + env["WHEEL"], token=token)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise
    return True


def fetched(name, sha256, token):
    content = ask("GET", PACKAGE + name, token=token)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(name + " is not what it was when this script was made; fetch the script again")
    write(os.path.join(env["work"], name), content)


PACKAGE = "/api/runtime/agent-package/"


def main():
    who = ["worker:", "  server: " + quoted(env["SERVER"]), "  name: " + quoted(env["WORKER"])]
    before = read(CONFIG)
    same = set(who) <= set(before.splitlines())
    token = read(TOKEN).strip() if same else ""
    if not (token and token_is_good(token)):
        exchanged = json.loads(ask("POST", "/api/runtime/enrolments/exchange", {"code": env["CODE"]}))
        if exchanged["worker"] != env["WORKER"]:
            raise ValueError("the code is for the worker " + exchanged["worker"])
        token = exchanged["token"]
        write(TOKEN, token.encode() + b"\n")
    if not same:
        if before:
            os.rename(CONFIG, CONFIG + ".old")
        lines = [
            "# This machine as a worker of a bloomd. bloomd.yaml(5) has all there is to set.",
            *who,
            "  token_file: " + quoted(TOKEN),
            "  root: " + quoted(os.path.join(env["STATE"], "work")),
            "  max_concurrency: " + env["MAX_CONCURRENCY"],
            "  labels: [" + ", ".join(map(quoted, json.loads(env["LABELS"]))) + "]",
        ]
        write(CONFIG, ("\n".join(lines) + "\n").encode())
    fetched(env["WHEEL"], env["WHEEL_SHA256"], token)
    fetched(env["REQUIREMENTS"], env["REQUIREMENTS_SHA256"], token)
    if same:
        print("bloomd-worker: %s is kept as it is" % CONFIG)


try:
    main()
except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
    sys.exit("bloomd-worker: %s: %s" % (env["SERVER"], explained(error)))
PYTHON
	)

	hand_over() {
		chown "$RUN_AS:$RUN_AS" "$CONF/token"
		chown "root:$RUN_AS" "$CONFIG"
		chmod 640 "$CONFIG"
	}

	install_program() {
		umask 022
		pip -r "$work/$REQUIREMENTS" --require-hashes
		pip --no-index --force-reinstall "$work/$WHEEL"
		umask 077
		"$VENV/bin/bloomd" --version >/dev/null </dev/null || die "the program is installed, but does not run"
		say "installed bloomd $VERSION for the worker $WORKER of $SERVER"
	}

	pip() {
		"$VENV/bin/python" -I -m pip --quiet --disable-pip-version-check --no-input install --no-deps "$@" </dev/null ||
			die "pip could not install the program (above is why); nothing is running that did not run before"
	}

	start() {
		if [ -z "$RUN_AS" ]; then
			say "there is no service, because you are not root. It runs by"
			say "    '$VENV/bin/bloomd' worker -c '$CONFIG'"
		elif have rc-update && [ -d "$ROOT/run/openrc" ]; then
			openrc_service
			rc-update --quiet add bloomd-worker default
			if has_claude; then rc-service bloomd-worker restart; else want_claude "rc-service bloomd-worker start"; fi
		elif have systemctl && [ -d "$ROOT/run/systemd/system" ]; then
			systemd_service
			systemctl daemon-reload
			systemctl --quiet enable bloomd-worker
			if has_claude; then systemctl restart bloomd-worker; else want_claude "systemctl start bloomd-worker"; fi
		else
			say "neither OpenRC nor systemd runs here. The worker runs in the foreground by"
			say "    su -s /bin/sh -c \"exec '$VENV/bin/bloomd' worker -c '$CONFIG'\" $RUN_AS"
		fi
	}

	has_claude() {
		grep -q '^ *command:' "$CONFIG" || (PATH=$SERVICE_PATH && command -v claude >/dev/null 2>&1)
	}

	want_claude() {
		say "the Claude CLI is not there yet. Install it to /usr/local/bin or $STATE/.local/bin, and log in as the user"
		say "$RUN_AS, whose home is $STATE:"
		say "    su -s /bin/sh -c claude $RUN_AS"
		say "then start the worker: $1"
	}

	openrc_service() {
		(umask 022 && mkdir -p "$ROOT/etc/init.d")
		cat >"$ROOT/etc/init.d/bloomd-worker" <<SERVICE
#!/sbin/openrc-run
# Written by the install script of bloomd, which writes it anew when it is run again. What can be changed is in
# /etc/conf.d/bloomd-worker.

# shellcheck shell=sh disable=SC2034 # OpenRC reads these variables

name="bloomd-worker"
description="A worker of bloomd: runs LLM tasks with the Claude CLI"
description_checkconfig="Check the configuration and report all its errors"
description_drain="Take no more tasks, finish those under way or give them back, and stop"

: "\${BLOOMD_WORKER_CONFIG:=$CONFIG}"
: "\${BLOOMD_BIN:=$VENV/bin}"

supervisor="supervise-daemon"
command="\$BLOOMD_BIN/bloomd"
command_args="worker -c \$BLOOMD_WORKER_CONFIG"
command_user="bloomd-worker:bloomd-worker"
directory="$STATE"
# Where the Claude CLI is: its own installer puts it into the first of these.
claude_path="$SERVICE_PATH"
supervise_daemon_args="--env HOME=\$directory --env PATH=\$claude_path"
pidfile="/run/\$RC_SVCNAME.pid"
umask="0077"
output_log="/var/log/bloomd-worker.log"
error_log="/var/log/bloomd-worker.log"

# A server that is away is no reason to end; what is one wants a person.
respawn_delay=5
respawn_max=5
respawn_period=60

# Longer than worker.grace_seconds, in which tasks under way are finished.
retry="\${retry:-TERM/60/KILL/5}"

# supervise-daemon's own commands are in extra_commands already.
extra_commands="checkconfig \$extra_commands"
extra_started_commands="drain"

depend() {
	need net
	after firewall bloomd
}

start_pre() {
	if ! id -u bloomd-worker >/dev/null 2>&1; then
		eerror "there is no user bloomd-worker; it is made by"
		eerror "    addgroup -S bloomd-worker"
		eerror "    adduser -S -D -H -h \$directory -s /sbin/nologin -G bloomd-worker bloomd-worker"
		return 1
	fi
	checkpath --directory --owner bloomd-worker:bloomd-worker --mode 0750 "\$directory" || return 1
	checkpath --file --owner bloomd-worker:bloomd-worker --mode 0640 "\$output_log" || return 1
	checkconfig
}

# A restart with a configuration that cannot be used would be a stop.
stop_pre() {
	[ "\$RC_CMD" != restart ] || checkconfig
}

# As the user that the worker runs as: a token that only root can read is an error here, too, and bloomd says which
# command lets it read the file. What it warns of on success is about a daemon with this configuration.
checkconfig() {
	einfo "Checking \$BLOOMD_WORKER_CONFIG"
	if ! found="\$(su -s /bin/sh -c "exec '\$command' check --config '\$BLOOMD_WORKER_CONFIG'" bloomd-worker 2>&1)"; then
		printf '%s\\n' "\$found" >&2
		eerror "the worker will not run with this configuration"
		return 1
	fi
}

# SIGTERM is all that it takes; the server hands the tasks that were given back to other workers.
drain() {
	einfo "Tasks under way may go on for worker.grace_seconds; \$output_log tells how they end"
	"\$RC_SERVICE" stop
}
SERVICE
		chmod 755 "$ROOT/etc/init.d/bloomd-worker"
	}

	systemd_service() {
		(umask 022 && mkdir -p "$ROOT/etc/systemd/system")
		cat >"$ROOT/etc/systemd/system/bloomd-worker.service" <<SERVICE
# Written by the install script of bloomd, which writes it anew when it is run again.

[Unit]
Description=A worker of bloomd: runs LLM tasks with the Claude CLI
Wants=network-online.target
# After a bloomd on this machine: so it is stopped before it, and can still bring what it has.
After=network-online.target bloomd.service
# Started at most five times within a minute, the first time included: the fifth failure wants a person.
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
User=$RUN_AS
Group=$RUN_AS
UMask=0077
# Where the Claude CLI is: its own installer puts it into the first of these.
Environment=PATH=$SERVICE_PATH
ExecStart=$VENV/bin/bloomd worker -c $CONFIG
Restart=on-failure
RestartSec=5
# Wrong usage, and what a person has to correct.
RestartPreventExitStatus=64 78
# The worker ends what it has started; longer than worker.grace_seconds, in which tasks under way are finished.
KillMode=mixed
TimeoutStopSec=60
# What a task runs may need more memory than there is; the others go on.
OOMPolicy=continue
# A worker whose event loop stands still holds its leases for nothing. Before it ends, Python writes where it stood.
WatchdogSec=60
Environment=PYTHONFAULTHANDLER=1
LimitCORE=0

# The home of its user, where the Claude CLI keeps its login, and where tasks write.
StateDirectory=bloomd-worker
StateDirectoryMode=0750
WorkingDirectory=$STATE

# Tasks run programs of any kind: they write nowhere but in that directory, and there they may do as they like. What is
# missing here is missing for a reason: MemoryDenyWriteExecute would end JavaScript's compiler; the sandbox of the Claude
# CLI makes namespaces with mounts of its own, and asks the kernel for network interfaces; debuggers trace. What is
# needed beyond it is for a drop-in: another worker.root for ReadWritePaths=, a GPU for PrivateDevices=no.
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
PrivateUsers=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
KeyringMode=private
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service @debug @mount seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self

[Install]
WantedBy=multi-user.target
SERVICE
		chmod 644 "$ROOT/etc/systemd/system/bloomd-worker.service"
	}

	choose_paths
	find_python
	if [ -n "$RUN_AS" ]; then make_user; fi
	make_directories
	make_venv
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	fetch
	if [ -n "$RUN_AS" ]; then hand_over; fi
	install_program
	start
}

# Cut off anywhere before its end, this is no shell script, and does nothing.
{ bloomd_worker_install "$@"; }
