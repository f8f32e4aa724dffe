# shellcheck shell=dash
# For commands of a guest with Mesa: `. mesa.sh` makes its root ready; the functions run programs in there. Each fails with what
# the program says of its failure.
for folder in dev proc sys; do
  mount --bind /$folder /mesa/$folder || exit 1
done
export MESA_SHADER_CACHE_DISABLE=1

# A program's complaints stay apart until it has ended: lines of others stay whole.
inside() {
  chroot /mesa "$@" 2>/tmp/words && return
  echo "guest: $* ended with $?" >&2
  cat /tmp/words >&2
  return 1
}

# Two at the same time.
draw_beside_another() {
  chroot /mesa virgl-client draw >/tmp/other 2>&1 & other=$!
  inside virgl-client draw || return 1
  wait $other
  set -- $?
  cat /tmp/other
  return "$1"
}

# A program is killed in the middle of its work, three times: when it has said something that begins like this, and somebody has
# looked.
kill_at_work() {
  beginning=$1
  shift
  for turn in 1 2 3; do
    rm -f /tmp/killed
    chroot /mesa "$@" >/tmp/killed 2>&1 & killed=$!
    until grep -qs "^$beginning" /tmp/killed; do
      kill -0 $killed || { cat /tmp/killed; return 1; }
      usleep 50000
    done
    pause working$turn
    kill -9 $killed
    wait $killed
    [ $? = 137 ] || return 1
  done
}
