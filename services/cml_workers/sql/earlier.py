"""The checkpoint that earlier versions of the relay kept in the read model's database."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cml_workers.sql.database import dispose, open_database, transaction
from cml_workers.sql.port import DatabaseOptions
from cml_workers.sql.schema import CHECKPOINTS

_OURS = CHECKPOINTS.c.follower == "relay"


class EarlierCheckpoint:
    """In a database that is opened only to look for it, and never made. Raises as ``transaction`` does."""

    def __init__(self, options: DatabaseOptions) -> None:
        self._options = options

    async def load(self) -> str | None:
        """It; None if there is none, or no such database."""
        if self._is_missing():
            return None
        engine = open_database(self._options)
        try:
            async with transaction(engine) as connection:
                has_table = await connection.run_sync(
                    lambda sync: sa.inspect(sync).has_table(CHECKPOINTS.name)
                )
                if not has_table:
                    return None
                position: str | None = await connection.scalar(sa.select(CHECKPOINTS.c.position).where(_OURS))
                return position
        finally:
            await dispose(engine)

    async def forget(self) -> None:
        """Delete it."""
        engine = open_database(self._options)
        try:
            async with transaction(engine) as connection:
                await connection.execute(sa.delete(CHECKPOINTS).where(_OURS))
        finally:
            await dispose(engine)

    def _is_missing(self) -> bool:
        url = self._options.url
        return url.startswith("sqlite:") and not Path(make_url(url).database or "").exists()
