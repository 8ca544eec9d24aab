"""One sampled step as plain values."""

from __future__ import annotations

import math
from typing import Any

from residuum.audit import Audit
from residuum.stream import Measured, RoundedMap

# What a line has beside the numbers that somebody noted.
FIELDS = ("step", "connections", "ternary", "findings", "skipped")


def line_of(
    step: int, audit: Audit, noted: dict[str, float], flips: list[float | None], cosines: list[float | None]
) -> dict[str, Any]:
    """What stands in one line. A number that is not finite, and a gradient that was not measured, is None.

    `flips` and `cosines` are those of the ternary maps, one after another.
    """
    return {
        "step": step,
        **{name: _finite(value) for name, value in noted.items()},
        "connections": [_connection(number, m) for number, stream in enumerate(audit.flow.measured) for m in stream],
        **({"ternary": list(map(_ternary, audit.flow.ternary, flips, cosines))} if flips else {}),
        "findings": [
            {"code": f.code, "severity": f.severity, "module": f.module, "message": f.message} for f in audit.findings
        ],
        "skipped": audit.skipped,
    }


def _connection(stream: int, measured: Measured) -> dict[str, Any]:
    residual, forward, backward = measured.residual, measured.forward, measured.backward
    numbers = {
        "state_rms": forward.state_rms,
        "write_rms": forward.write_rms,
        "write_share": forward.write_share,
        "arriving": backward.arriving if backward else None,
        "identity_path": backward.identity if backward else None,
        "branch_path": backward.branch if backward else None,
        "identity_share": backward.identity_share if backward else None,
        "cosine": backward.cosine if backward else None,
    }
    return {
        "stream": stream,
        "index": residual.index,
        "module": residual.module,
        "branch": residual.branch,
        **{name: _finite(value) for name, value in numbers.items()},
    }


def _ternary(rounded: RoundedMap, flips: float | None, cosine: float | None) -> dict[str, Any]:
    assert rounded.shares is not None
    minus, zero, plus = rounded.shares
    lost, top = rounded.read or (None, None)
    levels = {"minus": minus, "zero": zero, "plus": plus, "flips": flips}
    return {"name": rounded.name, **levels, "lost": lost, "top": top, "cosine": _finite(cosine)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
