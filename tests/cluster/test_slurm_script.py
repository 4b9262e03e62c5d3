"""The text of a batch job, and what may get into it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import JOB
from support.runs_for_tests import REPOSITORY

from cluster.errors import ClusterError
from cluster.job import Job
from cluster.slurm.backend import SlurmBackend
from cluster.slurm.settings import SlurmSettings

WHOLE = """\
#!/bin/bash
#SBATCH --job-name=r1
#SBATCH --nodes=2
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=a100:8
#SBATCH --account=my-project
#SBATCH --partition=gpu
#SBATCH --constraint='a100&nvlink'
#SBATCH --time=1-00:00:00
#SBATCH --mem=200G
#SBATCH --exclusive
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --mail-type=END

run_folder='/shared/my runs/r1'
code="$run_folder"/code
missing="launch: $code is not visible on this node; --runs-dir must be on a file system that all share"
cd "$code" || { scontrol update jobid=$SLURM_JOB_ID comment="$missing"; exit 2; }
exec >>"$run_folder"/slurm/batch.log 2>&1
# The ranks save when Slurm signals the end. Bash would die of the signal, and they of its death.
trap : TERM
module load cuda
export OMP_WAIT_POLICY=passive
export PYTHONPATH="$code":'/home/me/own modules'
export SUBMITIT_EXECUTOR=slurm
srun --ntasks-per-node=1 --unbuffered --open-mode=append --kill-on-bad-exit=0 --wait=60 --cpus-per-task=64 \
--output="$run_folder"/slurm/node-%t.log /venv/bin/python -u -m submitit.core._submit "$run_folder"/slurm
code=$?
case $code in 0|1|2|4|93) exit $code ;; esac
# Preempted, out of time, or lost. Slurm starts the job again by itself if it has ended it; and not if somebody has
# cancelled it. In the time before it would end it, only this does. A job that gets no further ends with 93 above.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
control() { scontrol "$@" || srun --overlap --ntasks-per-node=1 scontrol "$@"; }  # here, or where it is installed
state=$(control show job --oneliner "$job")
if [[ -z $state ]]; then
  echo "scontrol works on no node, so the job cannot be started again: use launch resume where Slurm can be reached"
elif [[ $state == *" JobState=RUNNING "* ]]; then
  control requeue "$job"
fi
exit $code
"""


def script(*jobs: Job, **settings: object) -> str:
    return SlurmBackend({"gpus": "gpus-per-node", **settings}).render(jobs or [JOB]).script


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_script_is_this(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    text = script(
        account="my-project", partition="gpu", constraint="a100&nvlink", time="1-00:00:00", memory="200G",
        cpus_per_rank="8", gpu_type="a100", exclusive="true", signal="USR1", signal_seconds="300",
        setup=["module load cuda"], lines=["--mail-type=END"],
    )  # fmt: skip
    assert text == WHOLE


def test_gpus_are_asked_for_as_the_settings_spell_it():
    assert "--gres=gpu:8" in options(script(gpus="gres"))
    assert "--gres=gpu:h100:8" in options(script(gpus="gres", gpu_type="h100"))
    ranks_on_cpus = replace(JOB, topology=replace(JOB.topology, has_gpus=False))
    text = script(ranks_on_cpus, gpus="none")
    assert "gpu" not in text
    assert "--cpus-per-task=8" in options(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"container_mounts": ["/data", "/home:/home:ro"]},
            '--container-image=nvcr.io#nvidia/pytorch:25.01-py3 --container-mounts="$run_folder":"$run_folder",'
            '/data:/data,/home:/home:ro --container-workdir="$code" env PYTHONPATH="$PYTHONPATH" '
            'SUBMITIT_EXECUTOR="$SUBMITIT_EXECUTOR" /opt/bin/python -u -m',
        ),
        (
            {"container_runtime": "apptainer"},
            'apptainer exec --nv --bind "$run_folder":"$run_folder" --pwd "$code" nvcr.io#nvidia/pytorch:25.01-py3 '
            'env PYTHONPATH="$PYTHONPATH" SUBMITIT_EXECUTOR="$SUBMITIT_EXECUTOR" /opt/bin/python -u -m',
        ),
    ],
)
def test_tasks_run_in_a_container_that_sees_the_run(settings, said):
    image = {"container": "nvcr.io#nvidia/pytorch:25.01-py3", "python": "/opt/bin/python"}
    job = replace(JOB, environment={})
    assert f'/node-%t.log {said} submitit.core._submit "$run_folder"/slurm\n' in script(job, **image, **settings)
    with pytest.raises(ClusterError, match="cannot be mounted"):
        script(replace(JOB, run_folder=Path("/a,b"), folder=Path("/a,b/code")), **image)


def test_fewer_nodes_are_asked_for_as_a_range():
    assert "--nodes=1-2" in options(script(least_nodes="1"))
    with pytest.raises(ClusterError, match=r"slurm.least_nodes=3 is more than --nodes 2; use at most that"):
        script(least_nodes="3")


def test_a_script_does_not_grow_with_the_nodes():
    many = replace(JOB, topology=replace(JOB.topology, nodes=2048))
    assert len(script(many)) == len(script()) + 3


def test_several_jobs_are_an_array_and_differ_in_their_run_alone():
    folders = [Path(f"/shared/my runs/g-{index}") for index in range(3)]
    jobs = [replace(JOB, run_folder=folder, folder=folder / "code", logs=folder / "logs") for folder in folders]
    assert script(*jobs, lines=["--mail-type=END"]) == (
        script(lines=["--mail-type=END"])
        .replace("#SBATCH --mail-type=END\n", "#SBATCH --array=0-2\n#SBATCH --mail-type=END\n")
        .replace(
            "run_folder='/shared/my runs/r1'\n",
            "run_folders=('/shared/my runs/g-0' '/shared/my runs/g-1' '/shared/my runs/g-2')\n"
            "run_folder=${run_folders[SLURM_ARRAY_TASK_ID]}\n",
        )
    )
    assert SlurmBackend({"gpus": "none"}).render(jobs).payloads == tuple((JOB.entry, str(f)) for f in folders)


@given(names=st.lists(st.text(st.characters(exclude_characters="\0/")), min_size=2, max_size=2))
def test_each_job_of_an_array_finds_its_run_whatever_that_is_called(names):
    folders = [Path(f"/g{name}") for name in names]
    try:
        text = script(*(replace(JOB, run_folder=folder, folder=folder / "code") for folder in folders))
    except ClusterError:
        return
    choice = text[text.index("run_folders=") : text.index("missing=")]
    for index, folder in enumerate(folders):
        command = ["bash", "-c", f'SLURM_ARRAY_TASK_ID={index}\n{choice}\nprintf %s "$code"']
        assert subprocess.run(command, capture_output=True, check=True).stdout == os.fsencode(folder / "code")


def test_the_settings_of_a_backend_make_it_again():
    backend = SlurmBackend({"partition": "gpu", "setup": ["a", "b"], "gpus": "gres"})
    assert SlurmBackend(backend.settings()).render([JOB]) == backend.render([JOB])


def test_the_example_of_a_profile_has_only_settings_that_exist():
    content = yaml.load((REPOSITORY / "profiles/example.yaml").read_text(), Loader=yaml.BaseLoader)
    settings = SlurmSettings.from_mapping(content["slurm"])
    assert settings.signal_seconds == 300
    assert settings.setup == ("module load cuda",)


@pytest.mark.parametrize("path", ["/a\nb", "/a\\b", "/a%jb", "/a\x1bb"])
def test_a_path_that_slurm_would_change_is_refused(path):
    with pytest.raises(ClusterError, match=r"use another folder"):
        script(replace(JOB, run_folder=Path(path), folder=Path(path) / "code"))


HOSTILE = ("$(id)", "a\nb", "`id`", "a;b", "'", '"', "#", "\\", "a b", "\x85", "\u2028")
WORDS = st.text(max_size=20) | st.sampled_from(HOSTILE)
FREE = ("account", "partition", "qos", "constraint", "reservation", "exclude", "time", "memory", "gpu_type")
IN_THE_TASK = ("python", "container", "container_mounts")


@given(name=st.sampled_from(FREE), value=WORDS)
def test_a_setting_is_refused_or_is_one_option_and_nothing_else(name, value):
    try:
        text = script(**{name: value})
    except ClusterError:
        return
    # A shell that reads the lines as sbatch does finds the value again.
    given_options = " ".join(options(text))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {given_options}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [word for word in words if value in word]
    assert len(options(text)) == len(words)
    assert text.count("\n") <= script().count("\n") + 1


@given(name=st.sampled_from(IN_THE_TASK), value=WORDS)
def test_a_word_of_the_task_is_refused_or_is_data_to_the_shell(name, value):
    try:
        text = script(**({"container": "image", name: value}))
    except ClusterError:
        return
    task = next(line for line in text.splitlines() if line.startswith("srun "))
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {task}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [word for word in printed if value in word]
    plain = next(line for line in script(container="image").splitlines() if line.startswith("srun "))
    assert len(printed) == len(shlex.split(plain))


@given(name=WORDS)
def test_no_name_of_a_run_is_more_than_a_name(name):
    (option,) = [option for option in options(script(replace(JOB, name=name))) if option.startswith("--job-name=")]
    assert re.fullmatch(r"--job-name=[A-Za-z0-9._-]*", option)
    assert script(replace(JOB, name=name)).replace(option, "--job-name=r1") == script()


@given(value=st.text(max_size=20))
def test_the_values_of_the_environment_are_data_to_the_shell(value):
    value = value.replace("\0", "")
    text = script(replace(JOB, environment={"X": value}))
    exports = text[text.index("export X=") : text.index("export SUBMITIT")]
    result = subprocess.run(
        ["bash", "-c", f'{exports}\nprintf %s "$X"'], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert result.stdout == value.encode("utf-8", "surrogatepass")
