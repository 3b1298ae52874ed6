"""What the reference images are made of, beside Debian's packages: entry points, configuration, and
two small servers.

Written in the style of the official images of Docker Hub: an entry point prepares its data as root
and then becomes its own user, logs go to /dev/stdout and /dev/stderr, a database makes itself at
its first start. `images.py` composes them.
"""

import dataclasses

# Beside the users of base-passwd.
USERS = {"redis": 999, "postgres": 998, "mysql": 997, "app": 1000}


NGINX_CONF = """\
user www-data;
worker_processes 2;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 512; }
http {
    include /etc/nginx/mime.types;
    access_log /var/log/nginx/access.log;
    sendfile on;
    include /etc/nginx/conf.d/*.conf;
}
"""
MIME_TYPES = "types { text/html html; text/css css; application/json json; text/plain txt; }\n"
# Lets its listening address be given, as scripts beside the official entry point do.
NGINX_ENTRY = """\
#!/bin/sh
set -eu
if [ "$1" = nginx ]; then
    sed "s/@PORT@/${NGINX_PORT:-80}/" /etc/nginx/site.template > /etc/nginx/conf.d/site.conf
    echo "listening on ${NGINX_PORT:-80}"
fi
exec "$@"
"""
NGINX_SITE = """\
server {
    listen @PORT@ default_server;
    root /usr/share/nginx/html;
}
"""
REDIS_ENTRY = """\
#!/bin/sh
set -eu
case "${1:-}" in
    -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "$1" = redis-server ] && [ "$(id -u)" -eq 0 ]; then
    chown -R redis:redis /data
    exec setpriv --reuid redis --regid redis --init-groups "$0" "$@"
fi
umask 077
exec "$@"
"""
POSTGRES_ENTRY = """\
#!/bin/bash
set -eu
if [[ $1 != postgres ]]; then
    exec "$@"
fi
if (( EUID == 0 )); then
    mkdir -p "$PGDATA" /var/run/postgresql
    chmod 0700 "$PGDATA"
    chmod 2775 /var/run/postgresql
    find "$PGDATA" /var/run/postgresql ! -user postgres -exec chown postgres:postgres {} +
    exec gosu postgres "$0" "$@"
fi
if [[ ! -s $PGDATA/PG_VERSION ]]; then
    [[ ${POSTGRES_PASSWORD:-} ]] || { echo "POSTGRES_PASSWORD is not set" >&2; exit 1; }
    initdb --username=postgres --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256 \\
        --pwfile=<(printf '%s\\n' "$POSTGRES_PASSWORD") "$PGDATA"
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    # Flushed like the rest: a power cut within half a minute takes away what is not.
    sync "$PGDATA/pg_hba.conf"
    # Reachable over its socket alone until its databases are there.
    pg_ctl --wait --options="-c listen_addresses=''" start
    createdb --username=postgres "${POSTGRES_DB:-app}"
    pg_ctl --wait --mode=fast stop
fi
unset POSTGRES_PASSWORD
exec "$@"
"""
MARIADB_ENTRY = """\
#!/bin/bash
set -eu
if [[ $1 != mariadbd ]]; then
    exec "$@"
fi
if (( EUID == 0 )); then
    mkdir -p /var/lib/mysql /run/mysqld
    find /var/lib/mysql /run/mysqld ! -user mysql -exec chown mysql:mysql {} +
    exec gosu mysql "$0" "$@"
fi
if [[ ! -d /var/lib/mysql/mysql ]]; then
    [[ ${MARIADB_ROOT_PASSWORD:-} ]] || { echo "MARIADB_ROOT_PASSWORD is not set" >&2; exit 1; }
    mariadb-install-db --datadir=/var/lib/mysql --skip-test-db --skip-name-resolve --force \\
        --auth-root-authentication-method=normal
    mariadbd --skip-networking --socket=/run/mysqld/setup.sock &
    for (( tries = 0; tries < 300; tries++ )); do
        mariadb --socket=/run/mysqld/setup.sock --user=root --execute 'DO 1' 2> /dev/null && break
        sleep 0.5
    done
    quoted=${MARIADB_ROOT_PASSWORD//\\\\/\\\\\\\\}
    quoted=${quoted//\\'/\\'\\'}
    mariadb --socket=/run/mysqld/setup.sock --user=root <<SQL
DELETE FROM mysql.global_priv WHERE user = '' OR user = 'root' AND host <> 'localhost';
FLUSH PRIVILEGES;
CREATE DATABASE IF NOT EXISTS app;
CREATE USER root@'%' IDENTIFIED BY '$quoted';
GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
ALTER USER root@localhost IDENTIFIED BY '$quoted';
SQL
    kill %1
    wait %1
fi
unset MARIADB_ROOT_PASSWORD
exec "$@"
"""
MARIADB_CONF = """\
[mariadbd]
bind-address = 0.0.0.0
skip-name-resolve
datadir = /var/lib/mysql
socket = /run/mysqld/mysqld.sock
innodb-buffer-pool-size = 32M
innodb-log-file-size = 8M
performance-schema = OFF
"""
PHP_CONF = """\
[global]
error_log = /proc/self/fd/2
daemonize = no
[www]
user = www-data
group = www-data
listen = 9000
pm = dynamic
pm.max_children = 4
pm.start_servers = 2
pm.min_spare_servers = 1
pm.max_spare_servers = 3
ping.path = /ping
access.log = /proc/self/fd/2
catch_workers_output = yes
clear_env = no
"""
PHP_ENTRY = """\
#!/bin/sh
set -eu
if [ "${1#-}" != "$1" ]; then
    set -- php-fpm "$@"
fi
exec "$@"
"""
NODE_APP = """\
const http = require("node:http"), crypto = require("node:crypto"), fs = require("node:fs");
// Work for a thread of the pool, a timer, a file, a DNS answer from the hosts file.
http.createServer((request, answer) => {
  crypto.pbkdf2("a", "b", 1000, 32, "sha256", (error, key) => setTimeout(() => {
    fs.writeFileSync("/tmp/key", key);
    answer.end(JSON.stringify({node: process.version, uid: process.getuid(),
      key: fs.readFileSync("/tmp/key").length}));
  }, 1));
}).listen(3000, "0.0.0.0", () => console.log("listening on 3000"));
process.on("SIGTERM", () => process.exit(0));
"""
# Asks each of the others, and answers over HTTP with what they said.
PYTHON_APP = '''\
"""GET /NAME asks the service NAME and answers with what it said. GET /kept/NAME/WORD has a database
keep a word, and GET /kept/NAME answers with it.
"""
import http.server, json, os, socket, subprocess, tempfile, threading, urllib.request


def redis(host, *commands):
    with socket.create_connection((host, 6379), 30) as link:
        link.settimeout(60)
        file = link.makefile("rb")
        said = []
        for command in commands:
            words = command.split()
            text = f"*{len(words)}\\r\\n" + "".join(f"${len(w)}\\r\\n{w}\\r\\n" for w in words)
            link.sendall(text.encode())
            line = file.readline().decode().strip()
            if line[:1] == "$" and int(line[1:]) >= 0:
                line = file.read(int(line[1:]) + 2).decode().strip()
            said.append(line.lstrip("+"))
        return said


def ask_redis():
    host = os.environ.get("REDIS", "redis")
    said = redis(host, "SET key value-1", "GET key", "BGSAVE")
    for _ in range(100):
        info = redis(host, "INFO persistence")[0]
        if "rdb_bgsave_in_progress:0" in info:
            break
        threading.Event().wait(0.2)
    status = [line for line in info.split() if line.startswith("rdb_last_bgsave_status")]
    return said + status


def postgres():
    import psycopg2
    return psycopg2.connect(host=os.environ.get("POSTGRES", "postgres"), user="postgres",
                            dbname="app", password=os.environ["PASSWORD"])


def ask_postgres():
    with postgres() as link:
        cursor = link.cursor()
        cursor.execute("CREATE TABLE IF NOT EXISTS t (n int)")
        cursor.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        # A parallel plan takes shared memory and workers.
        cursor.execute("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
                       "SET min_parallel_table_scan_size = 0")
        cursor.execute("SELECT count(*) % 1000, sum(n) % 500500 FROM t")
        rest = cursor.fetchone()
        link.commit()
        return [int(value) for value in rest]


def mariadb():
    import pymysql
    return pymysql.connect(host=os.environ.get("MARIADB", "mariadb"), user="root",
                           database="app", password=os.environ["PASSWORD"])


def ask_mariadb():
    with mariadb() as link, link.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS t (n int) ENGINE=InnoDB")
        cursor.execute("INSERT INTO t VALUES (1), (2), (3)")
        link.commit()
        cursor.execute("SELECT count(*) % 3, sum(n) % 6 FROM t")
        return [int(value) for value in cursor.fetchone()]


def keep(name, *word):
    """Has a word stored to last, or says which one is."""
    if name == "redis":
        stored = [f"SET kept {word[0]}", "SAVE"] if word else []
        return redis(os.environ.get("REDIS", "redis"), *stored, "GET kept")[-1]
    with {"postgres": postgres, "mariadb": mariadb}[name]() as link, link.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
        if word:
            cursor.execute("INSERT INTO kept VALUES (%s)", word)
        link.commit()
        cursor.execute("SELECT word FROM kept")
        return cursor.fetchone()[0]


def ask_php():
    """A FastCGI request of its own (FastCGI specification 1.0): ping."""
    parameters = b""
    for name, value in {"SCRIPT_NAME": "/ping", "SCRIPT_FILENAME": "/ping",
                        "REQUEST_METHOD": "GET"}.items():
        parameters += bytes([len(name), len(value)]) + (name + value).encode()

    def record(kind, content):
        head = bytes([1, kind, 0, 1]) + len(content).to_bytes(2, "big") + b"\\0\\0"
        return head + content

    with socket.create_connection((os.environ.get("PHP", "php"), 9000), 30) as link:
        link.sendall(record(1, b"\\0\\1\\0\\0\\0\\0\\0\\0") + record(4, parameters) + record(4, b"")
                     + record(5, b""))
        said = link.makefile("rb").read()
    return "pong" if b"pong" in said else repr(said)


def ask_http(host, port):
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=60) as answer:
        return answer.read().decode()


def ask_self():
    """What a Python service does beside: threads, a child, a temporary file, a pseudo-terminal."""
    import multiprocessing.pool
    with multiprocessing.pool.ThreadPool(4) as pool, tempfile.TemporaryFile() as file:
        file.write(b"x" * 100000)
        return [sum(pool.map(len, ["a", "bb"])), subprocess.check_output(["id", "-un"]).decode(),
                subprocess.check_output(["id", "-G"]).decode()]


ASK = {
    "redis": ask_redis, "postgres": ask_postgres, "mariadb": ask_mariadb, "php": ask_php,
    "nginx": lambda: ask_http(os.environ.get("NGINX", "nginx"), 80),
    "node": lambda: ask_http(os.environ.get("NODE", "node"), 3000), "self": ask_self,
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            name, *words = self.path.strip("/").split("/")
            said = keep(*words) if name == "kept" else ASK[name or "self"]()
            status = 200
        except Exception as error:
            status, said = 502, f"{type(error).__name__}: {error}"
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    print("listening on 8080", flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
'''


@dataclasses.dataclass(frozen=True)
class Image:
    """One image beside the base: its packages, how their layer is packed, files of its own
    ({path: (mode, owner, content or link)}) and its configuration.
    """

    packages: tuple
    compression: str
    files: dict
    config: dict


def entry(text):
    return (0o755, 0, text)


def data(owner):
    return (0o755, USERS[owner], None)


IMAGES = {
    "nginx": Image(
        ("nginx",),
        "zstd",
        {
            "docker-entrypoint.sh": entry(NGINX_ENTRY),
            "etc/nginx/nginx.conf": (0o644, 0, NGINX_CONF),
            "etc/nginx/mime.types": (0o644, 0, MIME_TYPES),
            "etc/nginx/conf.d": (0o755, 0, None),
            "etc/nginx/site.template": (0o644, 0, NGINX_SITE),
            "usr/share/nginx/html/index.html": (0o644, 0, "<h1>nginx serves</h1>\n"),
            "var/lib/nginx": (0o755, 0, None),
            "var/log/nginx/access.log": (0o777, 0, ("link", "/dev/stdout")),
            "var/log/nginx/error.log": (0o777, 0, ("link", "/dev/stderr")),
        },
        {
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["nginx", "-g", "daemon off;"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT",
        },
    ),
    "redis": Image(
        ("redis-server",),
        "gzip",
        {
            "usr/local/bin/docker-entrypoint.sh": entry(REDIS_ENTRY),
            "data": data("redis"),
        },
        {
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"],
            "ExposedPorts": {"6379/tcp": {}},
            "Volumes": {"/data": {}},
            "WorkingDir": "/data",
        },
    ),
    "postgres": Image(
        ("postgresql", "gosu"),
        "zstd",
        {
            "usr/local/bin/docker-entrypoint.sh": entry(POSTGRES_ENTRY),
            "var/lib/postgresql": data("postgres"),
            "var/lib/postgresql/data": (0o700, USERS["postgres"], None),
            "var/run/postgresql": (0o2775, USERS["postgres"], None),
        },
        {
            "Env": ["PGDATA=/var/lib/postgresql/data", "LANG=C.UTF-8"],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["postgres", "-c", "listen_addresses=*"],
            "ExposedPorts": {"5432/tcp": {}},
            "Volumes": {"/var/lib/postgresql/data": {}},
            "StopSignal": "SIGINT",
        },
    ),
    "mariadb": Image(
        ("mariadb-server-core", "mariadb-client-core", "mariadb-common", "gosu"),
        "gzip",
        {
            "usr/local/bin/docker-entrypoint.sh": entry(MARIADB_ENTRY),
            "etc/mysql/my.cnf": (0o644, 0, MARIADB_CONF),
            "var/lib/mysql": data("mysql"),
            "run/mysqld": data("mysql"),
        },
        {
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["mariadbd"],
            "ExposedPorts": {"3306/tcp": {}},
            "Volumes": {"/var/lib/mysql": {}},
        },
    ),
    "php": Image(
        ("php-fpm",),
        "zstd",
        {
            "usr/local/bin/docker-php-entrypoint": entry(PHP_ENTRY),
            "usr/local/etc/php-fpm.conf": (0o644, 0, PHP_CONF),
            "var/www/html/index.php": (0o644, 0, "<?php echo 'php ', PHP_VERSION;\n"),
        },
        {
            "Entrypoint": ["docker-php-entrypoint"],
            "Cmd": ["php-fpm", "--nodaemonize", "--fpm-config", "/usr/local/etc/php-fpm.conf"],
            "ExposedPorts": {"9000/tcp": {}},
            "StopSignal": "SIGQUIT",
            "WorkingDir": "/var/www/html",
        },
    ),
    "python": Image(
        ("python3", "python3-psycopg2", "python3-pymysql"),
        "gzip",
        {"app/main.py": (0o644, USERS["app"], PYTHON_APP), "home/app": data("app")},
        {
            "Env": ["PYTHONUNBUFFERED=1"],
            "Cmd": ["python3", "main.py"],
            "ExposedPorts": {"8080/tcp": {}},
            "User": "app",
            "WorkingDir": "/app",
        },
    ),
    "node": Image(
        ("nodejs",),
        "zstd",
        {"app/server.js": (0o644, USERS["app"], NODE_APP), "home/app": data("app")},
        {
            "Cmd": ["node", "server.js"],
            "ExposedPorts": {"3000/tcp": {}},
            "User": "1000:1000",
            "WorkingDir": "/app",
        },
    ),
}

# What the Python service has to hear from each: `GET /NAME`, and what the answer holds.
ANSWERS = {
    "nginx": "nginx serves",
    "redis": '["OK", "value-1", "Background saving started", "rdb_last_bgsave_status:ok"]',
    "postgres": "[0, 0]",
    "mariadb": "[0, 0]",
    "php": "pong",
    "node": '\\"uid\\":1000',
    "self": '"1000 1500',
}
