"""What a process of another machine leaves in the lock file of a run."""

OTHER_HOST = {
    "pid": 7,
    "process_started": 1.5,
    "host": "elsewhere",
    "job": "",
    "restarts": 0,
    "since": "2026-01-02 03:04:05 +0000",
}
