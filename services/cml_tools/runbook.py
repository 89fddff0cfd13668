"""What to do about each alert, in Markdown, generated from the alerts."""

from cml_tools.alerts import ALERTS
from cml_tools.generated import write_or_check

_HEADER = """# Alerts

Generated from `services/cml_tools/alerts.py`, as are the rules in `deploy/observability/alerts.yml`; do not edit. An alert that is critical
concerns everybody's commands, or will not end by itself.
"""


def runbook() -> str:
    """The page."""
    return _HEADER + "".join(
        f"\n## {each.name}\n\n{each.severity.capitalize()}, after {each.lasts}: `{each.shows} {each.when}`"
        f"{', or no such series of one of ours' if each.absent else ''}\n\n{each.remedy}\n"
        for each in ALERTS
    )


def main() -> None:
    """Write the document, or (``--check``) fail if the written one is not this one."""
    write_or_check(runbook, what="the page of alerts", source="services/cml_tools/alerts.py")


if __name__ == "__main__":
    main()
