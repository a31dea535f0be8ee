"""Lay out an OpenSearch server with ML Commons, k-NN and neural search from Maven Central.

For tests, and for trials on machines without containers: Maven fetches what the official image holds, once.
"""

import gzip
import os
import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nblib.files import atomic_folder
from nblib.run.lock import locked

VERSION = "3.6.0"  # the newest for which Maven Central has every plugin as a zip
PLUGIN_VERSION = "3.6.0.0"
LOG4J = "2.25.3"  # the server's POM has it as optional, and the server does not start without it
TORCH, JNI, DJL = "2.5.1", "0.32.0", "0.31.1"  # libtorch; its bridge to Java; DJL as ML Commons ships it
JAVA = 21
JAVA_FOLDERS = Path("/usr/lib/jvm")
PLUGINS = {  # artifact -> folder under plugins/
    "opensearch-knn": "opensearch-knn",
    "neural-search": "opensearch-neural-search",
    "opensearch-job-scheduler": "opensearch-job-scheduler",
    "opensearch-ml-plugin": "opensearch-ml",
}
MODULES = {  # folder under modules/ -> artifact; the server's jar brings none of them
    "transport-netty4": "transport-netty4-client",
    "transport-grpc": "transport-grpc",  # k-NN and neural search extend it
    "lang-painless": "lang-painless",
    "mapper-extras": "mapper-extras-client",  # rank_features
    "analysis-common": "analysis-common",
    "ingest-common": "ingest-common",
    "reindex": "reindex-client",
}
EXTENDS = {"analysis-common": "lang-painless"}
POLICIES = {  # what each module may do
    "transport-netty4": [
        'java.io.FilePermission "/proc/sys/net/core/somaxconn", "read"',
        'java.net.SocketPermission "*", "accept,connect"',
        'java.lang.RuntimePermission "setContextClassLoader"',
        'java.lang.RuntimePermission "getClassLoader"',
        'java.util.PropertyPermission "sun.nio.ch.bugLevel", "write"',
    ],
    "lang-painless": [
        'java.lang.RuntimePermission "createClassLoader"',
        'java.lang.RuntimePermission "getClassLoader"',
    ],
    "reindex": [
        'java.net.SocketPermission "*", "connect"',
        'java.net.NetPermission "getProxySelector"',
    ],
}
OPTIONAL = [  # optional in the server's POM, needed all the same
    ("org.locationtech.spatial4j", "spatial4j", "0.7"),
    ("org.locationtech.jts", "jts-core", "1.15.0"),
    ("org.apache.logging.log4j", "log4j-core", LOG4J),
]


class NoServer(RuntimeError):
    """What a server needs is not on this machine; says what, and what else can be done."""


@dataclass(frozen=True)
class Tools:
    """The programs that a server needs. java: of version JAVA or newer."""

    java: Path
    maven: Path


def find_tools() -> Tools:
    """Find Java and Maven.

    Java is looked for in OPENSEARCH_JAVA_HOME, JAVA_HOME, on the PATH and where Linux distributions put it;
    the newest is taken.

    Raises:
        NoServer: the machine is not Linux on x86-64, Java is missing or too old, or Maven is missing.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NoServer(
            "a server is assembled on Linux, x86-64, only: start the official image, `docker compose up -d`, "
            "or set OPENSEARCH_URL"
        )
    homes = [os.environ[name] for name in ("OPENSEARCH_JAVA_HOME", "JAVA_HOME") if os.environ.get(name)]
    places = [Path(home) / "bin" / "java" for home in homes]
    places += [Path(found)] if (found := shutil.which("java")) else []
    places += sorted(JAVA_FOLDERS.glob("*/bin/java"))
    versions = {java: _java_version(java) for java in places if java.is_file()}
    java = max(versions, key=versions.get, default=None)
    if java is None or versions[java] < JAVA:
        newest = f"the newest found is {versions[java]}, {java}" if java else "none was found"
        raise NoServer(f"OpenSearch {VERSION} needs Java {JAVA} or newer; {newest}")
    if not (maven := shutil.which("mvn")):
        raise NoServer("Maven (mvn) is not on the PATH; it fetches the server's parts")
    return Tools(java, Path(maven))


def _java_version(java: Path) -> int:
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def assemble(home: Path, maven: Path, say: Callable[[str], None] = print) -> Path:
    """Lay a server out, unless it is there: some 600 MB to fetch, 1.5 GB on disk.

    Args:
        home: made whole or not at all.
        maven: its program; what it fetches stays in its own cache.
        say: takes a line before the long part.

    Returns:
        home.

    Raises:
        NoServer: Maven could not fetch a part; holds the end of what it said.
    """
    with locked(home.parent, wait=True):
        if home.exists():
            return home
        say(f"laying out OpenSearch {VERSION} in {home}: some 600 MB, once")
        with atomic_folder(home) as folder:
            _fetch(folder, maven)
            _finish(folder)
    return home


def _fetch(folder: Path, maven: Path) -> None:
    """Let one call of Maven copy all parts: a project for each folder of jars."""
    build = folder / "build"
    server = ("org.opensearch", "opensearch", VERSION)
    lib = [server, ("org.opensearch", "opensearch-plugin-classloader", VERSION)]
    projects = {"lib": _project("lib", folder / "lib", lib, alone=OPTIONAL)}
    for name, artifact in MODULES.items():
        wanted = [("org.opensearch.plugin", artifact, VERSION)]
        projects[name] = _project(name, folder / "modules" / name, wanted, provided=server)
    agent = [("org.opensearch", "opensearch-agent", VERSION)]
    projects["agent"] = _project("agent", folder / "agent", agent, provided=server)
    projects["unpacked"] = _unpacked(folder)
    for name, text in projects.items():
        (build / name).mkdir(parents=True)
        (build / name / "pom.xml").write_text(text, encoding="utf-8")
    names = "".join(f"<module>{name}</module>" for name in projects)
    (build / "pom.xml").write_text(_pom("all", f"<modules>{names}</modules>"), encoding="utf-8")
    command = [maven, "-B", "-q", "-Dstyle.color=never", "-f", build / "pom.xml", "generate-resources"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NoServer(f"Maven could not fetch the server's parts:\n{(done.stdout + done.stderr)[-2000:]}")


def _pom(name: str, content: str) -> str:
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        f"<groupId>nblib</groupId><artifactId>{name}</artifactId><version>1</version>"
        f"<packaging>pom</packaging>{content}</project>"
    )


def _step(goal: str, configuration: str) -> str:
    """Bind a goal of the dependency plugin to the phase that is run."""
    return (
        "<build><plugins><plugin><groupId>org.apache.maven.plugins</groupId>"
        "<artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version><executions><execution>"
        f"<phase>generate-resources</phase><goals><goal>{goal}</goal></goals>"
        f"<configuration>{configuration}</configuration></execution></executions></plugin></plugins></build>"
    )


def _named(artifact: tuple[str, str, str]) -> str:
    group, name, version = artifact
    return f"<groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>"


def _project(name: str, target: Path, wanted: list, alone: list = (), provided: tuple | None = None) -> str:
    """Copy jars and what they need, less what the provided one brings; `alone` comes without company."""
    bare = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    parts = [f"<dependency>{_named(a)}</dependency>" for a in wanted]
    parts += [f"<dependency>{_named(a)}{bare}</dependency>" for a in alone]
    if provided:
        parts.append(f"<dependency>{_named(provided)}<scope>provided</scope></dependency>")
    copy = f"<outputDirectory>{target}</outputDirectory><includeScope>runtime</includeScope>"
    return _pom(name, f"<dependencies>{''.join(parts)}</dependencies>{_step('copy-dependencies', copy)}")


def _unpacked(folder: Path) -> str:
    """Unpack the plugins' zips and the native code, which DJL would else fetch at the first deployment."""
    plugin = "org.opensearch.plugin"
    native = (("ai.djl.pytorch", "pytorch-native-cpu", TORCH), "jar", folder / "build" / "native")
    bridge = (("ai.djl.pytorch", "pytorch-jni", f"{TORCH}-{JNI}"), "jar", folder / "build" / "bridge")
    items = [
        ((plugin, artifact, PLUGIN_VERSION), "zip", folder / "plugins" / name)
        for artifact, name in PLUGINS.items()
    ]
    found = ""
    for artifact, kind, target in (*items, native, bridge):
        classifier = "<classifier>linux-x86_64</classifier>" if "native" in artifact[1] else ""
        found += f"<artifactItem>{_named(artifact)}<type>{kind}</type>{classifier}"
        found += f"<outputDirectory>{target}</outputDirectory></artifactItem>"
    markers = f"<markersDirectory>{folder / 'build' / 'markers'}</markersDirectory>"
    return _pom("unpacked", _step("unpack", f"<artifactItems>{found}</artifactItems>{markers}"))


def _finish(folder: Path) -> None:
    """Describe the modules, which the published jars do not, and put the native code in place."""
    held = {jar.name for jar in (folder / "lib").iterdir()}
    for name in MODULES:
        module = folder / "modules" / name
        for jar in module.glob("*.jar"):
            if jar.name in held:  # the server refuses a class that comes twice
                jar.unlink()
        _describe(module, name)
    (folder / "bin").mkdir()  # empty, but the server wants to see it
    (folder / "libtorch").mkdir()
    for file in (folder / "build" / "native" / "pytorch" / "cpu" / "linux-x86_64").iterdir():
        if file.suffix == ".gz":
            with gzip.open(file) as packed, open(folder / "libtorch" / file.stem, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        else:
            shutil.move(file, folder / "libtorch" / file.name)
    bridge = folder / "build" / "bridge" / "jnilib" / "linux-x86_64" / "cpu" / "libdjl_torch.so"
    shutil.move(bridge, folder / "libdjl_torch.so")
    shutil.rmtree(folder / "build")


def _describe(module: Path, name: str) -> None:
    jar = module / f"{MODULES[name]}-{VERSION}.jar"
    with zipfile.ZipFile(jar) as held:
        plugins = [n for n in held.namelist() if n.endswith("Plugin.class") and "$" not in n]
    settings = {
        "description": name,
        "version": VERSION,
        "name": name,
        "classname": plugins[0].removesuffix(".class").replace("/", "."),
        "java.version": str(JAVA),
        "opensearch.version": VERSION,
        "custom.foldername": "",
        "extended.plugins": EXTENDS.get(name, ""),
        "has.native.controller": "false",
    }
    lines = "".join(f"{key}={value}\n" for key, value in settings.items())
    (module / "plugin-descriptor.properties").write_text(lines, encoding="utf-8")
    if name in POLICIES:
        allowed = "".join(f"  permission {what};\n" for what in POLICIES[name])
        (module / "plugin-security.policy").write_text(f"grant {{\n{allowed}}};\n", encoding="utf-8")
