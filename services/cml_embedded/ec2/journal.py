"""Instances and images in an SQLite file, written before a change is answered."""

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from cml_embedded.private import private_folder, private_sqlite


@dataclass(slots=True)
class Instance:
    """What the simulator knows of an instance beyond moto, and what it needs to bring it back.

    ``form``: the request that launched it; ``due``: when its state ends that only passes; ``resized_to``: the type it was
    given since; ``reason``: of its state, a code and a message, and ``transition``: who caused it and when; ``fate``: the
    state in which it ends instead of running, and the reason of that.
    """

    instance_id: str
    region: str
    form: dict[str, str]
    state: str
    due: float
    launched_at: float
    tags: dict[str, str]
    response: str
    private_ip: str | None = None
    public_ip: str | None = None
    hidden_until: float = 0.0
    resized_to: str | None = None
    reason: tuple[str, str] | None = None
    transition: str = ""
    fate: tuple[str, str, str] | None = None

    @property
    def instance_type(self) -> str:
        return self.resized_to or self.form.get("InstanceType", "m1.small")

    @property
    def token(self) -> str | None:
        return self.form.get("ClientToken")


class Journal:
    """One file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder, "ec2")
        file = folder / "ec2.sqlite3"
        private_sqlite(file)
        self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._database.executescript(
            "PRAGMA journal_mode=WAL;"
            "CREATE TABLE IF NOT EXISTS instances (id TEXT PRIMARY KEY, known TEXT);"
            "CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, region TEXT, name TEXT)"
        )

    def load(self) -> tuple[dict[str, tuple[str, str]], list[Instance]]:
        """Images (id to region and name), and instances in the order of their launch."""
        images = {
            row[0]: (row[1], row[2]) for row in self._database.execute("SELECT id, region, name FROM images")
        }
        rows = self._database.execute("SELECT known FROM instances ORDER BY rowid")
        return images, [Instance(**json.loads(row[0])) for row in rows]

    def save(self, instance: Instance) -> None:
        self._database.execute(
            "INSERT INTO instances VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET known = excluded.known",
            (instance.instance_id, json.dumps(asdict(instance))),
        )

    def save_image(self, image_id: str, region: str, name: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (image_id, region, name))

    def close(self) -> None:
        self._database.close()
