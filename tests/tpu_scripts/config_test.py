"""Settings: the file, the environment, flags, and what is wrong with them."""

import re

import pytest

from tests.tpu_scripts.cloud import ROOT, SCRIPTS

CREATE = ("create", "--dry_run")


def wrong(cloud, *words, script="tpu.sh", **more):
    result = cloud.run(script, *words, code=2, **more)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert not result.stdout and not cloud.of()
    return result.stderr


def settings(text):
    return dict(re.findall(r"^(?:# )?([a-z_]+)=(.*)$", text, re.MULTILINE))


def conf(cloud, text, name="launch.conf"):
    (cloud.folder / name).write_text(text)


def test_a_flag_wins_over_the_environment_and_that_over_the_file(cloud):
    conf(cloud, "name=a\nzone=us-east1-c\naccelerator=v4-8\n")
    assert "create a --zone=us-east1-c" in cloud.run("tpu.sh", *CREATE).stdout
    environment = {"NORMJAX_LAUNCH_ZONE": "us-east1-d", "NORMJAX_LAUNCH_NAME": "b"}
    result = cloud.run("tpu.sh", *CREATE, "--name=c", environment=environment)
    assert "create c --zone=us-east1-d" in result.stdout


def test_a_value_is_the_rest_of_its_line(cloud):
    conf(
        cloud,
        "# a comment\r\n\n  name = \"a\"  \nzone='us-east1-c'\naccelerator=v4-8\n"
        "command=python train.py --a='b c' \"$HOME\" # = x",
        "other.conf",
    )
    result = cloud.run("slurm.sh", "launch", "--conf=other.conf")
    assert "--job-name=a" in cloud.of("sbatch")[0], result
    command = "python train.py --a='b c' \"$HOME\" # = x"
    assert cloud.of("sbatch")[0][-3:] == ["bash", "-c", command]


def test_hyphens_and_bare_flags(cloud):
    place = ("--name=a", "--zone=us-east1-c", "--accelerator=v4-8")
    result = cloud.run("tpu.sh", "create", "--dry-run", "--spot", *place)
    assert result.stdout.endswith(" --spot\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zon=a\n", "launch.conf:1: 'zon': did you mean zone?"),
        ("\n\nslurm_node=1", "launch.conf:3: 'slurm_node': did you mean slurm_nodes?"),
        ("colour=red", "unknown setting in launch.conf:1: 'colour'; there are: accel"),
        ("name", "launch.conf:1: expected key=value, found 'name'"),
        ("spot=yes", "launch.conf:1: spot must be true or false, not 'yes'"),
        ("lines=ten", "launch.conf:1: lines must be a whole number, not 'ten'"),
    ],
)
def test_a_wrong_file_names_its_line(cloud, text, expected):
    conf(cloud, text)
    assert expected in wrong(cloud, *CREATE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lunch"], "unknown verb 'lunch': did you mean launch?"),
        (["paint"], "unknown verb 'paint'; there are: run create"),
        (["create", "--acelerator=v4-8"], "'acelerator': did you mean accelerator?"),
        (["create", "--zone"], "--zone needs a value: --zone=VALUE"),
        (["create", "-z"], "unknown flag '-z'"),
        (["create"], "no value for name, zone: set it in launch.conf, or as --zone="),
        (["create", "extra"], "unexpected word 'extra'"),
        (["create", "--conf=absent"], "no configuration file 'absent'"),
    ],
)
def test_a_wrong_call_says_what_is_meant(cloud, words, expected):
    assert expected in wrong(cloud, *words)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--name=My_tpu", "name 'My_tpu' is no name of a TPU"),
        ("--zone=us-central2", "zone 'us-central2' is no zone"),
        ("--zone=us-south1-aib", "zone 'us-south1-aib' is no zone"),
        ("--accelerator=v4", "accelerator 'v4' is no accelerator type"),
        ("--accelerator=tpu-8", "accelerator 'tpu-8' is no accelerator type"),
        ("--accelerator=v5e-16", "gcloud calls it v5litepod-16"),
        ("--accelerator=", "no value for accelerator"),
        ("--worker=one", "worker 'one' is neither a number nor all"),
        ("--reserved", "spot and reserved exclude each other"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_runs(cloud, flag, expected):
    place = ("--name=a", "--zone=us-east1-c", "--accelerator=v4-8", "--spot")
    assert expected in wrong(cloud, "create", *place, flag)


@pytest.mark.parametrize(
    ("zone", "accelerator"),
    [
        ("us-south1-ai1b", "v6e-8"),
        ("us-central1-ai1a", "v6e-8"),
        ("northamerica-northeast1-b", "v3-8"),
        ("us-central1-c", "tpu7x-16"),
    ],
)
def test_zones_and_types_of_the_documentation_pass(cloud, zone, accelerator):
    flags = ("--name=a", f"--zone={zone}", f"--accelerator={accelerator}", "--dry_run")
    result = cloud.run("tpu.sh", "create", *flags)
    assert result.returncode == 0
    assert f"--zone={zone} --accelerator-type={accelerator}" in result.stdout
    assert ("GKE has it" in result.stderr) == (accelerator == "tpu7x-16")


def test_a_wrong_environment_is_refused(cloud):
    environment = {"NORMJAX_LAUNCH_ZON": "us-east1-c"}
    expected = "unknown setting in the environment: 'zon': did you mean zone?"
    assert expected in wrong(cloud, *CREATE, environment=environment)


def test_nothing_to_run_is_refused(cloud):
    expected = "nothing to run: set command="
    place = ("--name=a", "--zone=us-east1-c")
    assert expected in wrong(cloud, "launch", *place)
    assert expected in wrong(cloud, "launch", "--name=a", script="slurm.sh")


@pytest.mark.parametrize("script", ["tpu.sh", "slurm.sh", "gke.sh"])
def test_help_names_every_verb(cloud, script):
    text = cloud.run(script, "--help").stdout
    assert cloud.run(script).stdout == text
    (verbs,) = re.findall(r"^VERBS='(.*)'$", (SCRIPTS / script).read_text(), re.M)
    for verb in set(verbs.split()) - {"help"}:
        assert re.search(rf"^  {verb}\s", text, re.MULTILINE), verb


def test_the_example_has_every_setting_with_its_default(cloud):
    defaults = dict(re.findall(r"\bconf_(\w+)=(\S*)", (SCRIPTS / "lib.sh").read_text()))
    defaults = {k: v.strip("'") for k, v in defaults.items() if not v.startswith("${")}
    text = (SCRIPTS / "example.conf").read_text()
    assert set(settings(text)) == set(defaults)
    for key, value in re.findall(r"^# ([a-z_]+)=(.*)$", text, re.MULTILINE):
        assert value == defaults[key], key
    conf(cloud, text)
    assert "v5litepod-8" in cloud.run("tpu.sh", *CREATE).stdout
    conf(cloud, re.sub(r"^# (?=[a-z_]+=)", "", text, flags=re.MULTILINE))
    assert "v5litepod-8" in cloud.run("tpu.sh", *CREATE).stdout


def test_the_page_names_real_settings_and_verbs():
    page = (ROOT / "docs/launch.md").read_text()
    known = set(settings((SCRIPTS / "example.conf").read_text()))
    lines = re.findall(r"^tpu_scripts/\w+\.sh .*$", page, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        script, verb, *words = line.split("#")[0].split(" -- ")[0].split()
        (verbs,) = re.findall(r"^VERBS='(.*)'$", (ROOT / script).read_text(), re.M)
        assert verb in verbs.split(), line
        for word in words:
            key = word.strip("[]").removeprefix("--").partition("=")[0]
            assert key in known | {"conf"}, line
