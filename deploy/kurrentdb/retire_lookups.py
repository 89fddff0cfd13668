"""Delete the records of commands that waited for a lookup in EC2, once they are older than so many days. Run it by a timer, e.g. daily.

    KURRENTDB_URI=esdb://admin:...@host:2113?TlsCaFile=ca.pem python deploy/kurrentdb/retire_lookups.py 100

Each is in a stream of its own, ``cml_lookup-...``, and of no use once its command is answered, or its dead letter is dealt with. KurrentDB
knows no age for all streams of a prefix, and lifecycle, which writes these, may not limit a stream: it writes those of the workers, too.
The next scavenge frees the space.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

from kurrentdbclient import AsyncKurrentDBClient, StreamState

LOOKUP_STREAMS = "cml_lookup-"
LEAST = 7
"""Days: a lookup whose result is a dead letter may be redriven."""


async def retire(uri: str, before: datetime) -> int:
    """Delete those that were recorded before then; how many these were."""
    client = AsyncKurrentDBClient(uri)
    retired = 0
    try:
        recorded = await client.read_all(
            filter_include=[LOOKUP_STREAMS], filter_by_prefix=True, filter_by_stream_name=True
        )
        async for event in recorded:  # oldest first; those that were deleted are seen until the next scavenge
            if event.recorded_at is None or event.recorded_at >= before:
                break
            metadata, _ = await client.get_stream_metadata(event.stream_name)
            if "$tb" not in metadata:
                await client.delete_stream(event.stream_name, current_version=StreamState.ANY)
                retired += 1
    finally:
        await client.close()
    return retired


def main() -> None:
    """Of as many days as the argument says."""
    uri = os.environ.get("KURRENTDB_URI")
    if not uri or len(sys.argv) != 2 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < LEAST:
        sys.exit(
            f"set KURRENTDB_URI, and say after how many days, at least {LEAST}; see the top of this file"
        )
    before = datetime.now(UTC) - timedelta(days=int(sys.argv[1]))
    print(f"{asyncio.run(retire(uri, before))} records of lookups deleted")


if __name__ == "__main__":
    main()
