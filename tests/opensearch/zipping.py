"""Zips of 06, changed."""

import zipfile
from pathlib import Path

from nblib.export.trace import write_zip
from nblib.files import read_json, sha256_file, write_json


def rewrite(source: Path, target: Path, config: Path, changes: dict[str, bytes | None]) -> None:
    """Change entries of a zip, None removing one, and let its configuration fit again."""
    with zipfile.ZipFile(source) as held:
        entries = {name: held.read(name) for name in held.namelist()} | changes
    write_zip(Path(target), {name: content for name, content in entries.items() if content is not None})
    write_json(config, read_json(config) | {"model_content_hash_value": sha256_file(target)})
