"""What an audit found, as lines for a terminal and as a table."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from fewshot.harness.audit.finding import Finding
from fewshot.report.formats import ResultTable, Row


def lines(findings: Iterable[Finding]) -> list[str]:
    """For each guard for how many it holds, and what came nearest to failing; for how many it fails, and each
    of those with the remedy.
    """
    by_guard: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_guard[finding.guard].append(finding)
    told = []
    for guard, held in by_guard.items():
        failed = [finding for finding in held if not finding.holds]
        verdict = "FAILS" if failed else "holds"
        told.append(f"{verdict} {len(failed or held):>3} of {len(held):<3} {guard}")
        told += [f"      {one.subject}: {one.seen}: {one.remedy}" for one in failed]
        if not failed:
            nearest = min(held, key=lambda finding: 1.0 if finding.chance is None else finding.chance)
            alike = len({finding.seen for finding in held}) == 1
            told.append(f"      {'each' if alike else nearest.subject}: {nearest.seen}")
    return told


def table(title: str, findings: Sequence[Finding], notes: Sequence[str] = ()) -> ResultTable:
    """Every finding as a row."""
    rows = [
        Row(finding.subject, (finding.guard, "yes" if finding.holds else "no", finding.seen))
        for finding in findings
    ]
    return ResultTable(title, ("guard", "holds", "seen"), "of", rows, list(notes))
