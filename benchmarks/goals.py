"""What was aimed at, beside what was measured; one table at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.table import markdown


@dataclass(frozen=True)
class Goal:
    """A figure that is to be below a limit, or at least as large as one."""

    what: str
    measured: float
    limit: float
    unit: str = ""
    below: bool = True  # else: at least

    @property
    def met(self) -> bool:
        return self.measured < self.limit if self.below else self.measured >= self.limit


def below(what: str, measured: float, limit: float, unit: str = "") -> Goal:
    return Goal(what, measured, limit, unit)


def at_least(what: str, measured: float, limit: float, unit: str = "") -> Goal:
    return Goal(what, measured, limit, unit, below=False)


def table(goals: list[Goal]) -> str:
    """What was met, and what was not."""
    rows = [
        (
            goal.what,
            f"{goal.measured:.4g} {goal.unit}".rstrip(),
            f"{'below' if goal.below else 'at least'} {goal.limit:.4g} {goal.unit}".rstrip(),
            "yes" if goal.met else "**no**",
        )
        for goal in goals
    ]
    return markdown("Goals", ("goal", "measured", "wanted", "met"), rows)
