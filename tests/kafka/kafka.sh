#!/usr/bin/env bash
# A real Apache Kafka on this machine, for tests and for trying: one broker in KRaft mode on loopback, on ports that are
# free, in a directory of its own. It needs Java 17 and Maven; Maven fetches the rest, once.
#
#   kafka.sh start [DIR]    starts it, waits until it answers, prints its address (HOST:PORT) on standard output
#   kafka.sh status [DIR]   prints the address if it runs, else fails
#   kafka.sh stop [DIR]     stops it with SIGTERM and removes DIR
#   kafka.sh kill [DIR]     stops it with SIGKILL and keeps DIR; `start` goes on from there, on the same ports
#   kafka.sh read [DIR] TOPIC
#                           prints all committed records of a topic with Kafka's own console consumer, one a line:
#                           Partition:N, Offset:N, key and value, with tabs between
#
#   kafka.sh tool DIR CLASS ARGUMENT...
#                           runs one of Kafka's own tools on it, such as org.apache.kafka.tools.TopicCommand
#
# DIR is target/kafka unless given. KAFKA_HEAP (512m) is the size of its heap, KAFKA_JVM has more options for Java. KAFKA_SETTINGS has more
# lines for its server.properties, over those that are there; @DIR@ stands for DIR, @PORT@, @CONTROLLER@ and @SECURED@ for ports. The last
# one is for a listener of those lines, and DIR/secured then has its address.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command=${1:-}
dir=${2:-$(cd "$here/../.." && pwd)/target/kafka}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/millrace-kafka
version=$(sed -n '/<artifactId>kafka_/,/<version>/s/.*<version>\(.*\)<.*/\1/p' "$here/pom.xml")
libs=$cache/$version-$(cksum <"$here/pom.xml" | cut -d' ' -f1)

say() { echo "[kafka] $*" >&2; }
die() {
  echo "[kafka] error: $*" >&2
  exit 1
}

fetch() {
  [ ! -e "$libs/complete" ] || return 0
  command -v mvn >/dev/null || die "Maven is missing, which fetches Apache Kafka (on Debian: apt-get install maven)"
  say "fetching Apache Kafka $version with its dependencies, once"
  mkdir -p "$libs"
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$libs" >&2 ||
    die "Maven could not fetch Apache Kafka $version; see above"
  touch "$libs/complete"
}

running() { [ -e "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

# What has the number of a process that has ended is another one's, and must not be signalled.
ours() { running && grep -aqsF -- "$dir/server.properties" "/proc/$(cat "$dir/pid")/cmdline"; }

# A port of one of five ranges that nobody listens on.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((17000 + 3000 * $1 + RANDOM % 3000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
      echo "$port"
      return 0
    }
  done
  die "no port is free"
}

# It ends before it would be worth to optimise it.
java_tool() { java -Xmx128m -XX:TieredStopAtLevel=1 "-Dlog4j2.configurationFile=$here/log4j2.properties" -cp "$libs/*" "$@"; }

prepare() {
  mkdir -p "$dir"
  local port controller behind front secured
  # Different ones: each from a range of its own.
  port=$(free_port 0)
  controller=$(free_port 1)
  behind=$(free_port 2)
  front=$(free_port 3)
  secured=$(free_port 4)
  { cat "$here/server.properties" && printf '%s\n' "${KAFKA_SETTINGS:-}"; } |
    sed -e "s|@PORT@|$port|g; s|@CONTROLLER@|$controller|g; s|@BEHIND@|$behind|g; s|@FRONT@|$front|g" \
      -e "s|@SECURED@|$secured|g; s|@DIR@|$dir|g" >"$dir/server.properties"
  local id
  # As its own tool makes them: sixteen bytes, and no name of an option.
  id=A$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 2-22)
  java_tool kafka.tools.StorageTool format --standalone -t "$id" -c "$dir/server.properties" >"$dir/format.log" 2>&1 || {
    cat "$dir/format.log" >&2
    die "its directory could not be prepared"
  }
  echo "127.0.0.1:$front 127.0.0.1:$behind" >"$dir/between"
  echo "127.0.0.1:$secured" >"$dir/secured"
  echo "127.0.0.1:$port" >"$dir/address"
}

start() {
  command -v java >/dev/null || die "Java 17 is missing (on Debian: apt-get install openjdk-17-jre-headless)"
  if ours; then
    cat "$dir/address"
    return 0
  fi
  fetch
  [ -e "$dir/address" ] || prepare
  setsid java "-Xmx${KAFKA_HEAP:-512m}" -XX:+UseSerialGC ${KAFKA_JVM:-} "-Dlog4j2.configurationFile=$here/log4j2.properties" -cp "$libs/*" \
    kafka.Kafka "$dir/server.properties" >>"$dir/kafka.log" 2>&1 </dev/null &
  echo $! >"$dir/pid"
  for _ in $(seq 1800); do
    running || {
      tail -n 20 "$dir/kafka.log" >&2
      die "it ended while it started; its last words are above"
    }
    # It says so once it serves all requests.
    if grep -q "Kafka Server started" "$dir/kafka.log"; then
      cat "$dir/address"
      return 0
    fi
    sleep 0.1
  done
  die "it was not ready within three minutes; see $dir/kafka.log"
}

# Waits until it has ended.
ended() {
  for _ in $(seq 300); do
    ours || return 0
    sleep 0.1
  done
  return 1
}

case $command in
start) start ;;
status) ours && cat "$dir/address" ;;
stop)
  if ours; then
    kill "$(cat "$dir/pid")"
    ended || kill -9 "$(cat "$dir/pid")"
  fi
  rm -rf "$dir"
  ;;
kill)
  ! ours || kill -9 "$(cat "$dir/pid")"
  ended
  rm -f "$dir/pid"
  mv "$dir/kafka.log" "$dir/kafka.log.before"
  ;;
read)
  # It ends when nothing came for this long, and says so as an error.
  java_tool org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$(cat "$dir/address")" --topic "${3:?a topic}" \
    --from-beginning --isolation-level read_committed --timeout-ms 8000 \
    --property print.partition=true --property print.offset=true \
    --property print.key=true 2>"$dir/read.log" || grep -q TimeoutException "$dir/read.log" || {
    cat "$dir/read.log" >&2
    exit 1
  }
  ;;
tool) java_tool "$3" --bootstrap-server "$(cat "$dir/address")" "${@:4}" ;;
*) die "say start, status, stop, kill, read or tool" ;;
esac
