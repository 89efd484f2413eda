"""A run's folder with files as a training on a cluster leaves them."""

import json

BEGUN = 1_795_000_000
ATTEMPTS = [
    {"time": BEGUN, "job": "7", "restart": 0, "nodes": ["n1", "n2"], "checkpoints": 1},
    {
        "time": BEGUN + 22,
        "job": "7",
        "restart": 0,
        "end": 137,
        "reason": "a rank was killed",
        "progress": True,
        "bad_nodes": ["n2"],
    },
    {"time": BEGUN + 30, "job": "7", "restart": 1, "nodes": ["n1", "n3"], "checkpoints": 2},
]
BAD_STEPS = [
    {"step": 6, "fault": "the loss is inf", "action": "roll_back", "samples": ["c"]},
    {"step": 8, "fault": "the loss is nan", "action": "skip", "samples": ["a<1", "b"]},
]
FINISHED = {"restart": 1, "end": 0, "reason": "finished", "progress": True, "bad_nodes": []}


def write_run(folder, steps=10, max_steps=20, attempts=ATTEMPTS, finished=False):
    """Two seconds a step; steps 0 to 4 before the restart, the others after it."""
    log = folder / "log"
    log.mkdir(parents=True)
    (log / "run.json").write_text(json.dumps({"max_steps": max_steps, "code": "0123abc"}))
    rows = [
        {
            "step": step,
            "loss": 4.0 / (step + 1),
            "learning_rate": 1e-4,
            "grad_norm": 2.0,
            "consumed_samples": 32.0 * (step + 1) if step else None,
            "tokens": 4000 + 200 * step,
            "seconds": 2.0,
            "time": BEGUN + 10 + 2 * step + (30 if step >= 5 else 0),
        }
        for step in range(steps)
    ]
    (log / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps(row) + "\n" for row in BAD_STEPS if row["step"] < steps]
    (log / "bad_steps.jsonl").write_text("".join(lines))
    end = {"time": BEGUN + 200, "job": "7", **FINISHED}
    lines = [*attempts, end] if finished else attempts
    if lines:
        (log / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
