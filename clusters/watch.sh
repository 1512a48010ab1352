#!/usr/bin/env bash
# Ends what Ray has left on a worker's machine once the cluster is gone; runs in the background.
#
#     clusters/watch.sh restart | stop
#
# `ray down` stops Ray on the head only. The raylet of a machine that stays on would end a minute
# later, its agents later still, and its log monitor never.
set -euo pipefail

PID_FILE="$HOME/.ray/watch.pid"
HEAD_PORT=6379   # of the cluster's control store
RAYLET_PORT=6380 # of this machine's raylet
PATIENCE_SECONDS=10

# Whether a machine says that nothing listens there: silence may be a cut network.
refuses() {
	local answer
	answer="$(LC_ALL=C timeout 3 bash -c ": </dev/tcp/$1/$2" 2>&1 || true)"
	[[ "$answer" == *"Connection refused"* ]]
}

watch() {
	local head gone=0
	head="$(cat "$HOME/.ray/head_ip")"
	while [ "$gone" -lt "$PATIENCE_SECONDS" ]; do
		sleep 1
		# The head is there and its Ray is not, or this machine's own has given up.
		if refuses "$head" "$HEAD_PORT" || refuses 127.0.0.1 "$RAYLET_PORT"; then
			gone=$((gone + 1))
		else
			gone=0
		fi
	done
	rm -f "$PID_FILE"
	ray stop
}

stop() {
	local pid
	pid="$(cat "$PID_FILE" 2>/dev/null)" || return 0
	rm -f "$PID_FILE"
	# After a reboot the number may be somebody else's.
	! grep -qs watch.sh "/proc/$pid/cmdline" || kill "$pid"
}

case "${1:-}" in
restart)
	stop
	setsid nohup bash "$0" watch </dev/null >"$HOME/.ray/watch.log" 2>&1 &
	echo $! >"$PID_FILE"
	;;
watch) watch ;;
stop) stop ;;
*)
	sed -n '2,4p' "$0" >&2
	exit 2
	;;
esac
