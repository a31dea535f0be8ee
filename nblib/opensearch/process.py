"""The process of an OpenSearch node: its settings, its folder, its command line.

Without security, since it listens on the loopback alone.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path

from nblib.files import write_text
from nblib.opensearch.assemble import DJL, TORCH, VERSION, NoServer

NOBODY = 65534  # the server refuses to run as root
PARTS = ("data", "logs", "tmp", "config")  # of a node's folder, which the server writes to
SETTINGS = """\
cluster.name: nblib
node.name: node
network.host: 127.0.0.1
discovery.type: single-node
cluster.routing.allocation.disk.threshold_enabled: false
plugins.ml_commons.only_run_on_ml_node: false
plugins.ml_commons.model_access_control_enabled: false
plugins.ml_commons.native_memory_threshold: 100
plugins.ml_commons.jvm_heap_memory_threshold: 100
plugins.ml_commons.allow_registering_model_via_url: true
plugins.ml_commons.allow_registering_model_via_local_file: true
plugins.ml_commons.trusted_url_regex: "^(https?|file)://.*"
"""
LOGGING = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = ${sys:opensearch.logs.base_path}${sys:file.separator}node.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""
JVM = [
    "-XX:+UseG1GC",
    "-XX:MaxDirectMemorySize=512m",
    "--enable-native-access=ALL-UNNAMED",
    "--add-modules=jdk.incubator.vector",
    "-Dopensearch.distribution.type=tar",
    "-Dopensearch.bundled_jdk=false",
    "-Dfile.encoding=UTF-8",
    "-Djava.awt.headless=true",
    "-Djna.nosys=true",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dlog4j2.disable.jmx=true",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.noKeySetOptimization=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
]


def settle(folder: Path, home: Path, port: int) -> None:
    """Write the settings, and give the folder to whom the server runs as."""
    shutil.rmtree(folder / "config", ignore_errors=True)  # whatever an earlier server left there
    for part in PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    places = f"path.data: {folder / 'data'}\npath.logs: {folder / 'logs'}\n"
    ports = f"http.port: {port}\ntransport.port: {free_port()}\nnode.processors: {os.cpu_count() or 1}\n"
    write_text(folder / "config" / "opensearch.yml", SETTINGS + places + ports)
    write_text(folder / "config" / "log4j2.properties", LOGGING)
    bridge = folder / "data" / "ml_cache" / "pytorch" / f"{TORCH}-cpu-linux-x86_64" / f"{DJL}-libdjl_torch.so"
    if not bridge.exists():  # DJL looks nowhere else for it
        bridge.parent.mkdir(parents=True, exist_ok=True)
        bridge.write_bytes((home / "libdjl_torch.so").read_bytes())
    if os.geteuid() == 0:
        for part in PARTS:
            for place in (folder / part, *(folder / part).rglob("*")):
                os.chown(place, NOBODY, NOBODY, follow_symlinks=False)


def launch(java: Path, home: Path, folder: Path, heap: str, log, bound: bool) -> subprocess.Popen:
    """Start the server; root starts it as nobody.

    Args:
        java: the program. home: where the server is assembled. folder: of the node.
        heap: of Java, such as "1g".
        log: an open file for what it says.
        bound: it ends when the calling thread does, however that ends (by setpriv of util-linux; without
            that program it stays).
    """
    agent = home / "agent" / f"opensearch-agent-{VERSION}.jar"
    paths = [
        f"-javaagent:{agent}",
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-Dopensearch.path.home={home}",
        f"-Dopensearch.path.conf={folder / 'config'}",
    ]
    binding = ["setpriv", "--pdeathsig", "TERM"] if bound and shutil.which("setpriv") else []
    command = [*binding, java, f"-Xms{heap}", f"-Xmx{heap}", *JVM, *paths, "-cp", home / "lib" / "*"]
    surroundings = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTORCH_LIBRARY_PATH": str(home / "libtorch"),
        "PYTORCH_VERSION": TORCH,
        "PYTORCH_FLAVOR": "cpu",
        "DJL_OFFLINE": "true",
        "OPT_OUT_TRACKING": "true",
    }
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.Popen(
        [*command, "org.opensearch.bootstrap.OpenSearch"],
        cwd=home,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # unbound, it outlives the command that started it
        **user,
    )


def free_port(wanted: int = 0) -> int:
    """Find a port of the loopback that nothing listens on, or make sure of the one that is wanted."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise NoServer(f"port {wanted} of 127.0.0.1 is taken ({error.strerror}): give another") from None
        return probe.getsockname()[1]
