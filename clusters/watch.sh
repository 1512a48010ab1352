#!/usr/bin/env bash
# Watches over a worker's machine, in the background: ends what Ray has left there once the cluster
# is gone, and tells Ray when AWS will take a spot machine away.
#
#     clusters/watch.sh restart | stop
#
# `ray down` stops Ray on the head only. The raylet of a machine that stays on would end a minute
# later, its agents later still, and its log monitor never.
#
# AWS announces two minutes ahead that it wants a spot machine back, to those who ask. Ray then marks
# the machine as draining, and a training on it saves at once (docs/reliability.md).
set -euo pipefail

PID_FILE="$HOME/.ray/watch.pid"
HEAD_PORT=6379   # of the cluster's control store
RAYLET_PORT=6380 # of this machine's raylet
PATIENCE_SECONDS=10
# Where a machine of EC2 asks about itself.
METADATA="${BSRNN_METADATA:-http://169.254.169.254}"
METADATA_SECONDS=5
NOTICE_SECONDS=110

# Whether a machine says that nothing listens there: silence may be a cut network.
refuses() {
	local answer
	answer="$(LC_ALL=C timeout 3 bash -c ": </dev/tcp/$1/$2" 2>&1 || true)"
	[[ "$answer" == *"Connection refused"* ]]
}

# Whether there is somebody to ask: EC2 names its machines i-...
on_ec2() {
	[ -n "${BSRNN_METADATA:-}" ] || grep -qs '^i-' /sys/class/dmi/id/board_asset_tag
}

will_go() {
	local token
	token="$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
		"$METADATA/latest/api/token" || true)"
	curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" \
		"$METADATA/latest/meta-data/spot/instance-action" >/dev/null
}

watch_for_notice() {
	until will_go; do
		sleep "$METADATA_SECONDS"
	done
	# Again when the head does not answer: there are two minutes.
	until ray drain-node --address "$(cat "$HOME/.ray/head_ip"):$HEAD_PORT" \
		--reason DRAIN_NODE_REASON_PREEMPTION --reason-message "AWS takes this spot machine back" \
		--deadline-remaining-seconds "$NOTICE_SECONDS"; do
		sleep "$METADATA_SECONDS"
	done
}

watch() {
	local head gone=0
	head="$(cat "$HOME/.ray/head_ip")"
	if on_ec2; then
		watch_for_notice &
		trap 'kill $! 2>/dev/null || true' EXIT
	fi
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
