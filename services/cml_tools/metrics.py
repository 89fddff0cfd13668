"""The reference of metrics, generated from where they are declared."""

from cml_tools.generated import write_or_check
from cml_workers.foundation.metrics import declared

_HEADER = """# Metrics

Each process serves its own at `/metrics`, on the port of its probes (`CML_HEALTH_PORT`), in Prometheus' text format. Generated from
`services/cml_workers/foundation/metrics.py`; do not edit.

No label grows with workers, commands, users or reply queues. A histogram has the series `_bucket`, `_sum` and `_count`. Beside these there are the
`process_` and `python_gc_` metrics of [Prometheus' client](https://prometheus.github.io/client_python/collector/).

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """The page, in Markdown."""
    rows = (
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.meaning} |"
        for each in declared()
    )
    return _HEADER + "\n".join(rows) + "\n"


def main() -> None:
    """Write the document, or (``--check``) fail if the written one is not this one."""
    write_or_check(reference, what="the reference of metrics", source="the metrics")


if __name__ == "__main__":
    main()
