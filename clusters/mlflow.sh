#!/usr/bin/env bash
# The MLflow server of a cluster's head, in the background: started again when it dies, ended when
# the head's Ray has ended, so that `ray down` leaves none behind.
#
#     clusters/mlflow.sh restart | stop | log
#
# It listens on the head's address in the cluster's network and not on loopback alone, because the
# worker with rank 0 and the trials of a sweep record their runs from whichever node they are on. So
# it asks for Ray's token (pipelines/mlflow_gate.py), and cluster.yaml's firewall lets only nodes of
# the cluster in; people come through an ssh tunnel (docs/cluster.md).
set -euo pipefail

FOLDER="${MLFLOW_FOLDER:-$HOME/mlflow}"
# Of all that the server writes where artifacts are no s3:// address.
ARTIFACTS="${MLFLOW_ARTIFACTS:-$FOLDER/artifacts}"
PORT=5000
RAY_PORT=6379
PATIENCE_SECONDS=120 # for Ray to start

stop() {
	local group signal
	group="$(cat "$FOLDER/group" 2>/dev/null)" || return 0
	# After a reboot the number may be somebody else's.
	grep -qs mlflow.sh "/proc/$group/cmdline" || return 0
	for signal in TERM KILL; do
		kill "-$signal" -- "-$group" 2>/dev/null || return 0
		for _ in $(seq 100); do
			kill -0 -- "-$group" 2>/dev/null || return 0
			sleep 0.1
		done
	done
}

ray_is_here() {
	(: <"/dev/tcp/127.0.0.1/$RAY_PORT") 2>/dev/null
}

serve() {
	local address
	address="$(cat "$HOME/.ray/head_ip")"
	# What language models do for MLflow in the background is of no use here.
	export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
	# Browsers at the near end of a tunnel say localhost.
	mlflow server --app-name bsrnn --host "$address" --port "$PORT" --workers 1 \
		--allowed-hosts "$address:$PORT,localhost:$PORT,127.0.0.1:$PORT" \
		--backend-store-uri "sqlite:///$FOLDER/mlflow.db" \
		--artifacts-destination "$ARTIFACTS"
}

watch() {
	local server=0 waited=0 seen=no
	echo $$ >"$FOLDER/group"
	while true; do
		if ray_is_here; then
			seen=yes waited=0
		else
			waited=$((waited + 1))
			# Once it was here, a few seconds without it mean that it has ended.
			if [ "$waited" -gt "$([ $seen = yes ] && echo 5 || echo $PATIENCE_SECONDS)" ]; then
				break
			fi
		fi
		if ! kill -0 "$server" 2>/dev/null || [ "$server" = 0 ]; then
			serve &
			server=$!
		fi
		sleep 1
	done
	rm -f "$FOLDER/group"
	kill -TERM 0
}

case "${1:-}" in
restart)
	umask 077 # the database and the artifacts are their owner's
	mkdir -p "$FOLDER"
	stop
	setsid nohup bash "$0" watch </dev/null >>"$FOLDER/server.log" 2>&1 &
	;;
watch) watch ;;
stop) stop ;;
log) tail -n 100 -f "$FOLDER/server.log" ;;
*)
	sed -n '2,5p' "$0" >&2
	exit 2
	;;
esac
