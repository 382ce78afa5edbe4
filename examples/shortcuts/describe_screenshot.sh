#!/bin/sh
# Describe a part of the screen: drag over it, and the description is in the clipboard and in a
# notification. Escape ends it. describe_screenshot.sh [QUESTION]
set -eu
# Shortcuts and Automator start scripts with a bare PATH.
PATH="$PATH:$HOME/.local/bin:/opt/homebrew/bin:/usr/local/bin"

notify() {
  osascript -e 'on run argv' \
    -e 'display notification (item 1 of argv) with title "Screenshot"' \
    -e 'end run' -- "$1"
}

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
screencapture -i -x "$folder/shot.png" || true
[ -s "$folder/shot.png" ] || exit 0

if ! "${MLX_QWENVL:-mlx-qwenvl}" generate --image "$folder/shot.png" \
  --prompt "${1:-Describe this screenshot.}" >"$folder/answer" 2>"$folder/told" </dev/null; then
  notify "$(tail -n 1 "$folder/told")"
  cat "$folder/told" >&2
  exit 1
fi
pbcopy <"$folder/answer"
notify "$(cat "$folder/answer")"
cat "$folder/answer"
