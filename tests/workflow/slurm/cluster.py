"""A one-node Slurm of Debian's packages in a folder of its own: no systemd, no cgroups, no accounting.

`python tests/workflow/slurm/cluster.py FOLDER` starts one, prints the variables to export and stops it on Ctrl-C.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")

# Declared, not real: a node that can hold every job of the tests at once, so that only GPUs make jobs wait.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge={min_job_age}
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm and munge that this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """A running one-node cluster. Commands find it by `environment`.

    gpus: files that stand for GPUs, which makes jobs queue for them. min_job_age: seconds a finished job stays in the list.
    """

    def __init__(self, folder: Path, gpus: int = 1, cpus: int = 8, memory: int = 256_000, min_job_age: int = 3600):
        self.folder = folder
        self.processes: list[subprocess.Popen] = []
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(folder / "bin"), "/usr/sbin", "/usr/bin", "/bin"])
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        # The executor plugin takes SLURM_CONF out of a job's environment; a real cluster's file is where srun looks for it.
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        devices = [folder / f"gpu{k}" for k in range(gpus)]
        for device in devices:
            device.touch()
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                ports=_free_ports(2),
                folder=folder,
                cpus=cpus,
                memory=memory,
                gpus=gpus,
                min_job_age=min_job_age,
            )
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def start(self, seconds: float = 30) -> None:
        """Start the daemons and wait until the node takes jobs."""
        files = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        # --force: temporary folders are not as closed as munged wants its own.
        self._start(
            "munged", "--foreground", "--force", f"--key-file={self.folder / 'munge.key'}", f"--socket={files['socket']}",
            f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}",
        )  # fmt: skip
        self._wait(files["socket"].exists, seconds, "munged")
        self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
        self._wait(
            lambda: self.command("sinfo", "--noheader", "--format=%T", check=False) == "idle", seconds, "the node"
        )

    def stop(self) -> None:
        """End the jobs, then the daemons, by pid."""
        if all(p.poll() is None for p in self.processes):
            self.cancel_all()
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def cancel_all(self, seconds: float = 20) -> None:
        """End every job and wait until none is left."""
        self.command("scancel", f"--user={getpass.getuser()}", check=False)
        end = time.monotonic() + seconds
        while self.command("squeue", "--noheader", check=False) and time.monotonic() < end:
            time.sleep(0.2)

    def command(self, *command: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        result = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout.strip()

    def jobs(self) -> list[dict[str, str]]:
        """Every job the controller knows, as `scontrol show job` prints it, by job id."""
        text = self.command("scontrol", "--oneliner", "show", "job")
        rows = [dict(f.split("=", 1) for f in line.split(" ") if "=" in f) for line in text.splitlines()]
        # A comment may hold spaces and equals signs; the fields of interest stand before it or have names of their own.
        return sorted((row for row in rows if "JobId" in row), key=lambda row: int(row["JobId"]))

    def _start(self, *command: str) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(
                    [shutil.which(command[0], path=path), *command[1:]],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.environment,
                    start_new_session=True,
                )
            )

    def _wait(self, ready, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(p.poll() is not None for p in self.processes):
                logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted(self.folder.glob("*.out")))
                self.stop()
                raise RuntimeError(f"{what} did not start:\n{logs}")
            time.sleep(0.05)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main() -> None:
    """Run a cluster until interrupted."""
    if missing := missing_programs():
        sys.exit(f"error: {', '.join(missing)} missing: apt-get install slurmctld slurmd slurm-client munge")
    with Cluster(Path(sys.argv[1]).resolve()) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']} PATH={cluster.folder}/bin:$PATH", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
