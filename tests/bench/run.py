"""``make bench``: measure a checkout, this one or another, with this harness; see docs/performance.md.

The figures come from a process of its own, whose modules are those of the checkout that is measured.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console

HERE = Path(__file__).resolve().parent
WIRE = ("throughput", "latency", "long", "burst")
SECTIONS = (*WIRE, "calls", "micro", "structure")
LIBRARIES = (
    "faststream",
    "aio-pika",
    "pydantic",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "kurrentdbclient",
    "uvloop",
)
console = Console(width=None if sys.stdout.isatty() else 180)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; each is a variable of ``make bench``."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measure in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}; separated by commas")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--checkout", type=Path, default=HERE.parents[1], help="measure this one")
    parser.add_argument("--against", type=Path, help="measure this one first, and compare")
    parser.add_argument("--postgresql", action="store_true", help="the read model in a private PostgreSQL")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument(
        "--document",
        nargs="+",
        type=Path,
        metavar=("DOCUMENT", "JSON"),
        help="write one or two results into it",
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="as little as shows that it works")
    chosen = parser.parse_args(given)
    unknown = set(filter(None, chosen.only.split(","))) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return chosen


def main() -> None:
    options = arguments()
    if options.inside:
        inside(options)
        return
    from bench import report  # noqa: PLC0415 - only this needs the terminal

    if options.compare:
        report.compare(console, *map(report.read, options.compare))
    elif options.document:
        document, before, *after = options.document
        report.write_into(document, report.read(before), report.read(*after) if after else None)
    elif options.against:
        before = measure(options, options.against)
        after = measure(options, options.checkout)
        for result in (before, after):
            report.show(console, result)
        report.compare(console, before, after)
        if options.json:
            write(options.json.with_suffix(".against.json"), before)
            write(options.json, after)
    else:
        result = measure(options, options.checkout)
        report.show(console, result)
        if options.json:
            write(options.json, result)


def measure(options: argparse.Namespace, checkout: Path) -> dict[str, Any]:
    """Measure it in a process that imports from it, and the harness from here."""
    checkout = checkout.resolve()
    with tempfile.TemporaryDirectory(prefix="cml-bench-") as folder:
        # Only this package: what else the tests of either have must come from the checkout that is measured.
        (Path(folder) / "harness").mkdir()
        (Path(folder) / "harness" / "bench").symlink_to(HERE)
        path = [f"{folder}/harness", *(f"{checkout}/{part}" for part in ("services", "contracts", "tests"))]
        answer = Path(folder) / "result.json"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "bench.run",
                *_repeated(options),
                "--checkout",
                checkout,
                "--inside",
                answer,
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            check=True,
        )
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def _repeated(options: argparse.Namespace) -> list[str]:
    return [
        *("--seconds", str(options.seconds), "--rounds", str(options.rounds), "--only", options.only),
        *(["--postgresql"] if options.postgresql else []),
        *(["--small"] if options.small else []),
    ]


def inside(options: argparse.Namespace) -> None:
    """In that process: run the sections, write the result."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    only = [each for each in SECTIONS if not options.only or each in options.only.split(",")]
    load = [round(each, 2) for each in os.getloadavg()]
    result: dict[str, Any] = {"schema": 1, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    result["code"] = code(options)
    with tempfile.TemporaryDirectory(prefix="cml-bench-data-") as folder:
        result |= dict(_sections(options, only, Path(folder), result))
    result["machine"] = {**machine(), "load before": load[0], "load after": round(os.getloadavg()[0], 2)}
    write(options.inside, result)


def _sections(
    options: argparse.Namespace, only: Sequence[str], folder: Path, result: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    from bench import micro, structure, wire  # noqa: PLC0415 - of the checkout that is measured
    from bench.fleet import Size  # noqa: PLC0415
    from bench.processes import system  # noqa: PLC0415

    done: list[tuple[str, dict[str, Any]]] = []
    if set(only) & set(WIRE):
        size = Size(seconds=options.seconds, rounds=options.rounds)
        if options.small:
            size = Size(0.2, rounds=1, in_flight=4, burst=5, bursts=1, long=30, short=5, repetitions=2)
        result["size"] = asdict(size)
        with system(folder / "wire", postgresql=options.postgresql) as running:
            result["code"] |= {"RabbitMQ": running.rabbitmq}
            done += wire.measure(running, size, only, say).items()
    if "calls" in only:
        say("calls")
        done.append(("calls", _calls(folder / "calls", small=options.small)))
    if "micro" in only:
        say("micro")
        (folder / "micro").mkdir()
        few: dict[str, Any] = {"rounds": 2, "lengths": (20,)} if options.small else {}
        done.append(("micro", micro.measure(folder / "micro", **few)))
    if "structure" in only:
        done.append(("structure", structure.measure(options.checkout)))
    return done


def _calls(folder: Path, *, small: bool) -> dict[str, Any]:
    from bench import calls  # noqa: PLC0415 - of the checkout that is measured
    from bench.processes import observation_age  # noqa: PLC0415

    for name in [
        each for each in os.environ if each.startswith(("RABBITMQ_URL", "KURRENTDB", "DATABASE", "CML_"))
    ]:
        del os.environ[name]
    # Reminders of what has waited long come by the clock, not by command.
    os.environ |= {"CML_DATA_DIR": str(folder), "CML_REMINDER_SECONDS": "3600", "CML_LOG_LEVEL": "error"}
    os.environ |= observation_age()
    folder.mkdir()
    return calls.count_calls(list(calls.SCRIPT)[:2], crowd=3) if small else calls.count_calls()


def code(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured, and on what."""
    import cml_workers  # noqa: PLC0415 - to see that it is the checkout's

    assert cml_workers.__file__ is not None
    assert Path(cml_workers.__file__).resolve().is_relative_to(options.checkout), cml_workers.__file__
    return {
        "commit": _git(options.checkout, "rev-parse", "--short", "HEAD"),
        "changed": bool(_git(options.checkout, "status", "--porcelain", "--", "services", "contracts")),
        "RabbitMQ": "none",
        "store": "KurrentDB" if os.environ.get("KURRENTDB_URI") else "SQLite",
        "read model": "PostgreSQL" if options.postgresql or os.environ.get("DATABASE_URL") else "SQLite",
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def machine() -> dict[str, Any]:
    """What it ran on, without its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def say(what: str) -> None:
    """On stderr, as it goes."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {what}\n")
    sys.stderr.flush()


def write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def _git(checkout: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=checkout, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
