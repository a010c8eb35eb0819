#!/usr/bin/env bash
# The tree of HEAD without its history, as one commit of a new bare repository: tools/one_commit.sh NEW.git [MESSAGE]
# For the day before the first tag, so that a published repository begins without every version of the weights.
# Author and date are those of HEAD. This repository stays as it is.
set -euo pipefail
new=${1:?name a folder that does not exist: tools/one_commit.sh NEW.git}
[ ! -e "$new" ] || { echo "$new exists already: name a folder that does not"; exit 2; }
new=$(realpath "$new")
cd "$(dirname "$0")/.."
message=${2:-$(git log -1 --format=%s)}

export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_AUTHOR_DATE
{ read -r GIT_AUTHOR_NAME; read -r GIT_AUTHOR_EMAIL; read -r GIT_AUTHOR_DATE; } < <(git log -1 --format='%an%n%ae%n%ad' --date=raw)
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
commit=$(git commit-tree 'HEAD^{tree}' -m "$message")
git init -q --bare -b main "$new"
git push -q "file://$new" "$commit:refs/heads/main"

there=$(git -C "$new" rev-parse 'main^{tree}') here=$(git rev-parse 'HEAD^{tree}')
[ "$there" = "$here" ] && [ "$(git -C "$new" rev-list --count main)" -eq 1 ] || { echo "$new holds another tree than HEAD"; exit 1; }
git -C "$new" fsck --no-dangling --no-progress
echo "$new: one commit with the tree $here, $(du -sm "$new" | cut -f1) MB; git clone $new"
