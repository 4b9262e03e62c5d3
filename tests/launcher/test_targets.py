"""Which place a command line means."""

from __future__ import annotations

import pytest
from support.runs_for_tests import REPOSITORY, TINY

from cluster.errors import ClusterError
from cluster.slurm.settings import SlurmSettings
from launcher.cli import main
from launcher.errors import UsageError
from launcher.targets import choose_target

PROFILE = "target: slurm\nslurm:\n  partition: gpu\n  time: 1:00:00\n  setup: [module load cuda, 'true']\n"


@pytest.fixture(autouse=True)
def _with_profiles(tmp_path, monkeypatch):
    """A folder with profiles, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/big.yaml").write_text(PROFILE)


def settings(on: str | None, *words: str, **before: object) -> dict[str, object]:
    """Those that are not as they are without any."""
    target = choose_target(on, 1, words, before)
    return {key: value for key, value in target.backend.settings().items() if value != getattr(SlurmSettings(), key)}


def test_without_a_flag_it_is_this_machine_where_there_is_no_slurm():
    assert choose_target(None, 2, ["steps=3"], {}).backend.name == "local"


def test_what_is_only_planned_for_several_nodes_is_for_slurm_wherever_it_is_planned():
    assert choose_target(None, 2, ["steps=3"], {}, is_planned=True).backend.name == "slurm"
    assert choose_target(None, 1, ["steps=3"], {}, is_planned=True).backend.name == "local"


def test_where_there_is_no_slurm_a_run_for_it_is_refused_in_one_line_and_not_made(tmp_path, capsys):
    words = [str(REPOSITORY / TINY), "--on", "slurm", "--runs-dir", str(tmp_path / "runs")]
    for settings in ([], ["slurm.gpus=none"], ["slurm.gpus=none", "--seeds", "2"]):
        assert main([*words, *settings]) == 3
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert "is not on this machine; use a machine that can submit to Slurm" in captured.err
    assert not (tmp_path / "runs").exists()


def test_a_profile_is_read_and_the_command_line_wins():
    target = choose_target("big", 2, ["slurm.time=5", "steps=3"], {})
    assert (target.backend.name, str(target.profile), target.words) == ("slurm", "profiles/big.yaml", ("steps=3",))
    whole = {"partition": "gpu", "time": "1:00:00", "setup": ("module load cuda", "true")}
    assert settings("big") == whole
    assert settings("big", "slurm.time=5") == whole | {"time": "5"}


def test_a_run_goes_on_where_its_job_was_with_the_settings_that_it_had():
    before = {"target": "slurm", "settings": {"partition": "gpu", "setup": ["a"]}}
    assert settings(None, "slurm.time=5", **before) == {"partition": "gpu", "setup": ("a",), "time": "5"}
    assert choose_target("local", 1, [], before).backend.name == "local"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("a: &b 1\nc: *b", "has an alias"),
        ("[]", "must name its target"),
        ("target: cloud", "must name its target"),
        ("target: slurm\nslrm: {}", "and nothing else"),
        ("target: slurm\nslurm: 3", "and nothing else"),
    ],
)
def test_a_profile_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "profiles/bad.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        choose_target("bad", 1, [], {})
    assert "profiles/bad.yaml" in str(caught.value)


def test_an_unknown_setting_of_a_profile_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "profiles/bad.yaml").write_text("target: slurm\nslurm: {partitoin: x}")
    with pytest.raises(ClusterError, match=r"did you mean slurm\.partition"):
        choose_target("bad", 1, [], {})


def test_no_profile_is_read_from_elsewhere(tmp_path):
    (tmp_path / "other.yaml").write_text(PROFILE)
    with pytest.raises(ClusterError, match="is not a known target"):
        choose_target("../other", 1, [], {})


def test_spot_machines_are_played_here_unless_a_profile_says_where_they_are(tmp_path):
    spot = choose_target("spot", 2, [], {}, {"seed": 3})
    assert (spot.backend.name, spot.backend.settings()["seed"]) == ("local_spot", 3)
    (tmp_path / "profiles/spot.yaml").write_text(PROFILE)
    assert choose_target("spot", 2, [], {}).backend.name == "slurm"


def test_a_run_goes_on_on_spot_machines_as_it_was_there():
    before = {"target": "local_spot", "settings": {"seed": 3, "mean_seconds": 20, "trace": None}}
    assert choose_target(None, 1, [], before).backend.settings() == before["settings"]


def test_spot_machines_have_no_more_gpus_than_this_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    backend = choose_target("spot", 2, [], {}).backend
    assert backend.topology(3, 1).has_gpus
    with pytest.raises(ClusterError, match=r"--nodes 2 --gpus 2 is more than this machine has \(3 GPUs"):
        backend.topology(2, 2)
