"""promtool: checks the alert rules of `deploy/prometheus`, and evaluates them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
EVALUATED_AT = "10m"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (scripts/setup --dev)")


def promtool(*arguments: str | Path) -> None:
    """Run it among the rules; it must succeed."""
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def require_alerts(directory: Path, series: Mapping[str, float], expected: Mapping[str, Any]) -> None:
    """Of series that keep their values for ten minutes, only the `expected` rules fire, by name: labels and texts."""
    names = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())
    assert set(expected) < set(names)
    evaluation = {
        "input_series": [{"series": each, "values": f"{value!r}x40"} for each, value in series.items()],
        "alert_rule_test": [
            {"eval_time": EVALUATED_AT, "alertname": name, "exp_alerts": [expected[name]] if name in expected else []}
            for name in names
        ],
        "interval": "30s",
    }
    file = directory / "evaluation.json"
    file.write_text(json.dumps({"rule_files": [str(RULES / "alerts.yml")], "tests": [evaluation]}))
    promtool("test", "rules", file)
