#!/usr/bin/env bash
# The steps of a run as a shell script does them, inside the image and the container profile of a sandbox: what the
# bench compares the service with. It has no queue, no record, no gateway, no check of what is pushed or of the message,
# and nothing goes on after a crash.
#
# usage: baseline.sh REPOSITORY BRANCH AGENT ARGUMENT...
# Reads task.jsonl and question.jsonl beside itself; prints "mark NAME SECONDS" at each step.
set -euo pipefail
here=${BASH_SOURCE[0]%/*} repository=$1 branch=$2
shift 2

mark() { printf 'mark %s %s\n' "$1" "$EPOCHREALTIME"; }

# Sends a prompt and waits for the agent's last words. jq takes the results out of the stream, one line each, because
# bash reads a pipe byte by byte.
ask() {
  printf '%s\n' "$(<"$here/$1")" >&"${agent[1]}"
  IFS= read -r answer <&"${agent[0]}"
}

mark began
git clone --quiet -- "$repository" .
git switch --quiet --create "$branch"
mark prepared
coproc agent { "$@" | jq --unbuffered --compact-output 'select(.type == "result" and .is_error == false) | .result'; }
mark prompted
ask task.jsonl
mark answered
git add --all
ask question.jsonl
jq --raw-output . <<<"$answer" | git commit --quiet --file -
mark committed
git push --quiet origin HEAD
mark pushed
