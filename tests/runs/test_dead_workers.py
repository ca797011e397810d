"""A loader worker that dies without a word is told with the sample it was at, by training and by ``verify --deep``."""

from __future__ import annotations

import sys

import psutil
import pytest

from tests.support.fork_server import ForkServer
from tests.support.launch import TRAIN_FLAGS, Finished, run

# The command of a module, where MUSE's sample 1 ends the process that reads it.
COMMAND = """
import os, signal, sys
from utils.data.sources.muse import MuseTrain
from {module} import main

read = MuseTrain.get

def read_or_die(source, index, rng):
    if index == 1:
        os.kill(os.getpid(), signal.{ending})
    return read(source, index, rng)

MuseTrain.get = read_or_die
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def command(forks: ForkServer, module: str, ending: str, *flags: str) -> Finished:
    return forks.python("-c", COMMAND.format(module=module, ending=ending), *flags)


@pytest.mark.parametrize("ending", ["SIGSEGV", "SIGKILL"])
def test_verify_names_the_sample_and_goes_on(tiny_world, forks, tmp_path, ending):
    flags = [f"--dataset_dir={tiny_world.dataset}", "--dataset=multi_reason_seg", "--workers=2", "--deep"]
    report = tmp_path / "report.txt"
    finished = command(forks, "utils.data.verify", ending, *flags, f"--report={report}")
    assert finished.code == 2, finished.text
    assert finished.errors == ["error: 1 record is bad. Correct what is listed above, or leave it out of the flags"]
    assert "multi_reason_seg: 3 samples, 1 bad (worker died 1)" in finished.stdout
    (line,) = report.read_text(encoding="utf-8").splitlines()
    assert line.startswith(f"multi_reason_seg, sample 1: the loader worker that read it was ended by {ending}")
    assert "Traceback" not in finished.text


def test_training_names_the_sample(tiny_world, forks, tmp_path):
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=x", "--no_eval"]
    only_muse = ["--dataset=multi_reason_seg", "--sample_rates=1", "--epoch_mode=all"]
    finished = command(forks, "train_ds", "SIGSEGV", *flags, *only_muse)
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert error.startswith("error: multi_reason_seg, sample 1: the loader worker that read it was ended by SIGSEGV")
    assert "utils.data.verify --deep" in error
    assert "Traceback" not in finished.text


ORPHAN = """
import os, time
from utils.data.workers import WatchedLoader

class Slow:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            time.sleep(100)
        return os.getpid()

for worker in WatchedLoader(Slow(), [], num_workers=1, batch_size=None):
    print(worker, flush=True)
    os._exit(1)
"""


def test_a_worker_in_the_middle_of_a_batch_does_not_outlive_its_process(repository):
    """It would hold memory, and a GPU of the machine, for as long as the batch takes."""
    finished = run([sys.executable, "-c", ORPHAN], cwd=repository, timeout=90)  # until the worker has left its output
    assert finished.code == 1, finished.text
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == int(finished.stdout)], timeout=10)
    assert not psutil.pid_exists(int(finished.stdout))
