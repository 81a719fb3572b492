"""Answers the jobs of sh2gen.tune_worker without a GPU, as `rules.json` in a folder says.

Run with that folder as its argument. Imports nothing of sh2gen, so that it starts at once. Rules
are, by direction and then by config ("BLOCK_T=512 TILES=1"), what a candidate does: `us`, its
times by workload or by length; and by the job that it is given ("verify", "time") `hang`, `die`,
`garbage`, or an answer; and of the whole, how many seconds `start` and `pause`, before each job,
take, and which `uuid` the `machine` has. Every job is noted in `jobs.jsonl`, with the process that
had it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def answer(job: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any] | str:
    what = rule.get(job["do"])
    if what == "hang":
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "garbage":
        return "a line that a compiler printed"
    if isinstance(what, dict):
        return what
    sizes = job.get("workloads", [])
    times = rule.get("us", [100.0] * len(sizes))
    if isinstance(times, dict):
        times = [times.get(str(length), 100.0) for _, length in sizes]
    return {
        "machine": {
            "status": "ok",
            "gpu": "NVIDIA H200",
            "uuid": rule.get("uuid", "4d8b"),
            "versions": {"torch": "2.11.0", "triton": "3.6.0"},
        },
        "bounds": {"status": "ok", "us": [[49.0, 50.0, 51.0]] * len(sizes)},
        "verify": {"status": "ok", "checks": 21},
        "time": {"status": "ok", "us": [[0.99 * us, us, 1.01 * us] for us in times]},
    }[job["do"]]


def main() -> None:
    folder = Path(sys.argv[1])
    rules = json.loads((folder / "rules.json").read_text())
    time.sleep(rules.get("start", 0))
    for line in sys.stdin:
        job = json.loads(line)
        config = job.get("config", {}).get(job.get("direction"), {})
        name = " ".join(f"{knob}={value}" for knob, value in config.items())
        note = {"pid": os.getpid(), "do": job["do"], "config": name, "seed": job.get("seed")}
        with (folder / "jobs.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        rule = rules.get(job.get("direction"), {}).get(name, {})
        if pause := rules.get("pause"):
            time.sleep(pause)
        rule = rules.get("machine", {}) if job["do"] == "machine" else rule
        said = answer(job, rule)
        sys.stdout.write((said if isinstance(said, str) else json.dumps(said)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
