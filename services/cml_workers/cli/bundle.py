"""``cml-workers bundle``: one file for a bug report, with what somebody who cannot see this system has to know of it."""

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from cml_workers.cli.doctor import examined
from cml_workers.cli.terminal import USAGE, client_settings, err, fail, out, run_to_end
from cml_workers.foundation.secrets import redacted, redacted_values
from cml_workers.runtime.settings import Settings

MOST_LINES = 5_000

ABOUT = """\
A bundle of cml-workers {version}, made at {time}.

{listed}

Of the logs the last lines are here, if any were named. Secrets are replaced by ***: by their name, by their form, and those of the settings
by their value. Names, tags and reasons that people have chosen may be in it: look through it before you send it to anybody.
"""


def bundle(
    to: Annotated[
        Path | None,
        typer.Option("--out", help="The file. Default: cml-workers-bundle-TIME.tar.gz, here."),
    ] = None,
    logs: Annotated[
        list[str] | None,
        typer.Option(
            help="A log: a file, a folder with files *.log, or - for the standard input. May be repeated. Default: none."
        ),
    ] = None,
    lines: Annotated[int, typer.Option(min=1, help="Of each log its last lines.")] = MOST_LINES,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="Where a role serves its probes, e.g. http://10.0.0.7:8080. May be repeated."),
    ] = None,
    no_doctor: Annotated[
        bool, typer.Option("--no-doctor", help="Do not ask AWS; see cml-workers doctor.")
    ] = False,
) -> None:
    """Collect what a bug report needs into one file, for its owner alone. Nothing is changed.

    Run it with the settings of the projector, which may see all parts. In the file are: versions; the settings, without secrets; what the
    probes and metrics of the roles say, with how far the followers are behind; how many messages wait in which queue; pending operations, and
    what each waits for; dead letters without their content; what the doctor says; the logs that you name.

    What cannot be had, as a part is down for example, is left out, and README.txt in the file says why. Of the embedded system,
    cml-workers run, everything is found by itself but its log.

        kubectl -n cml-workers logs -l cml-role --tail=5000 | cml-workers bundle --logs - --probe http://127.0.0.1:8080
        docker compose logs --no-log-prefix > all.log; cml-workers bundle --logs all.log

    Secrets are replaced by ***. Names, tags and reasons stay: look through it before you send it.

    Exit codes: 0 it is made, with whatever could be had; 1 it cannot be written; 2 wrong usage or configuration.
    """
    from cml_workers.bundle import parts  # noqa: PLC0415 - slow to load

    settings = client_settings()
    for url in probe or []:
        if not url.startswith(("http://", "https://")) or "@" in url:
            fail("--probe is a URL that begins with http:// or https://, without user and password", USAGE)
    now = datetime.now(UTC)
    name = f"cml-workers-bundle-{now:%Y%m%dT%H%M%SZ}"
    file = to or Path(f"{name}.tar.gz")

    async def collected() -> tuple[dict[str, str], dict[str, str]]:
        wanted = dict(parts.parts(settings, probe or []))
        if not no_doctor:
            wanted["doctor"] = partial(_doctor, settings)
        found = await asyncio.gather(*map(parts.had, wanted.values()))
        results = dict(zip(wanted, found, strict=True))
        texts = {f"{part}.json": _json(content) for part, (content, why) in results.items() if why is None}
        return texts, {part: why for part, (_, why) in results.items() if why is not None}

    with err.status("collecting ..."):
        texts, missing = run_to_end(collected())
        for place in logs or []:
            try:
                for number, (log, last) in enumerate(parts.logs([place], lines)):
                    unique = f"logs/{log}" if f"logs/{log}" not in texts else f"logs/{number}-{log}"
                    texts[unique] = "\n".join([*last, ""])
            except OSError as error:
                missing[f"log {place}"] = error.strerror or str(error)
    texts = {"README.txt": _about(texts, missing, now), **texts}
    try:
        _write(file, name, texts, now)
    except FileExistsError:
        fail(f"{file} exists already; --out names another one", USAGE)
    except OSError as error:
        fail(f"--out: cannot write {file}: {error.strerror}", 1)
    for part, why in missing.items():
        err.print(f"not in it: {part}: {why}", soft_wrap=True, highlight=False, markup=False)
    out.print(
        f"{file}: {len(texts)} files. Look through it before you send it.", soft_wrap=True, highlight=False
    )


async def _doctor(settings: Settings) -> Mapping[str, Any]:
    lines, regions = await examined(settings, [])
    return {"regions": regions, "lines": [line._asdict() for line in lines]}


def _json(content: Any) -> str:
    return redacted(json.dumps(redacted_values(content), indent=1, ensure_ascii=False, default=str))


def _about(texts: Mapping[str, str], missing: Mapping[str, str], now: datetime) -> str:
    listed = [
        "In it:",
        *(f"  {name}" for name in texts),
        *(
            ["", "Could not be had:", *(f"  {part}: {why}" for part, why in missing.items())]
            if missing
            else []
        ),
    ]
    return ABOUT.format(
        version=version("cml-workers"),
        time=now.isoformat(timespec="seconds"),
        listed=redacted("\n".join(listed)),
    )


def _write(file: Path, folder: str, texts: Mapping[str, str], now: datetime) -> None:
    """For its owner alone. Raises OSError."""
    opened = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(opened, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in texts.items():
            content = text.encode(errors="backslashreplace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, now.timestamp()
            archive.addfile(entry, io.BytesIO(content))
