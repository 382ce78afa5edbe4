#!/bin/sh
# A conversation in the terminal, typed by this script instead of by hand: examples/interactive.sh
# By hand it is `mlx-qwenvl chat --model demo`; \help lists what else can be said.
cd "$(dirname "$0")" || exit 1
exec mlx-qwenvl chat --model demo <<'SAID'
Hello!
\image images/shapes.png What is shown in this image?
What color is the circle?
\exit
SAID
