"""One comparison of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """`ratio` is ours/peer; `met` compares it, or `ours` where there is no peer, with `goal`."""

    name: str
    ours: float
    peer: float | None
    peer_name: str
    unit: str
    ratio: float | None
    goal: str
    met: bool | None
    axis: str = ""
    """Of a figure that is one of a series: what grows. `name` is the series' then."""
    at: float | None = None
    """Where on the axis it was taken."""

    @classmethod
    def against(
        cls,
        name: str,
        ours: float,
        peer_name: str,
        peer: float,
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
    ) -> Row:
        """A comparison whose ratio shall be at least or at most so much; with neither there is no goal."""
        ratio = ours / peer
        if least is not None:
            return cls(name, ours, peer, peer_name, unit, ratio, f">= {least}", ratio >= least)
        if most is not None:
            return cls(name, ours, peer, peer_name, unit, ratio, f"<= {most}", ratio <= most)
        return cls(name, ours, peer, peer_name, unit, ratio, "", None)

    @classmethod
    def alone(cls, name: str, ours: float, unit: str, *, most: float | None = None) -> Row:
        """A figure without a peer."""
        return cls(
            name,
            ours,
            None,
            "",
            unit,
            None,
            "" if most is None else f"<= {most} {unit}",
            None if most is None else ours <= most,
        )

    @classmethod
    def of_series(cls, name: str, ours: float, unit: str, *, axis: str, at: float, most: float | None = None) -> Row:
        """A figure of a series, without a peer."""
        return replace(cls.alone(name, ours, unit, most=most), axis=axis, at=at)

    def __str__(self) -> str:
        peer = f" against {self.peer_name} {self.peer:,.0f}: {self.ratio:.2f}" if self.peer and self.ratio else ""
        met = {True: "met", False: "not met", None: ""}[self.met]
        at = f" at {self.at:,.0f} {self.axis}" if self.at is not None else ""
        return f"{self.name}{at}: {self.ours:,.2f} {self.unit}{peer}  {self.goal} {met}".rstrip()
