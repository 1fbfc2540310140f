"""What every command has in common: its help, its errors, its endings, --json and the completion of a shell."""

import argparse
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videossl import __main__
from videossl.__main__ import COMMANDS, main
from videossl.commands.arguments import build_parser, parse, subparsers_of
from videossl.config import Config, setting_lines
from videossl.pretext import available, load

SCRIPT = Path(sys.executable).with_name("videossl")
COLUMNS, SCREEN_LINES = 100, 50


@pytest.fixture
def parsers(monkeypatch) -> dict[str, argparse.ArgumentParser]:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return subparsers_of(build_parser(COMMANDS, imported=COMMANDS))


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The commands shown in a help, whole."""
    lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s+(videossl|torchrun) ", line)]


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_50_lines_of_100_columns_and_ends_with_an_example(parsers, command):
    text = parsers[command].format_help().rstrip()
    shown = sum(max(1, math.ceil(len(line) / COLUMNS)) for line in text.splitlines())
    assert shown <= SCREEN_LINES
    assert examples(parsers[command])
    last = text.replace("\\\n", " ").splitlines()[-1]
    assert re.search(rf"videossl {command}\b", last), last


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_of_a_help_is_a_command_line(parsers, command):
    parser = build_parser(COMMANDS, imported=COMMANDS)
    for example in examples(parsers[command]):
        words = shlex.split(example.partition(">")[0], comments=True)
        words = words[words.index("videossl") + 1 :]
        assert parser.parse_args(words).command == words[0]


def test_the_help_of_all_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown or f"{name}\n" in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "videossl: no command 'trian'; did you mean 'train'? (videossl --help)"),
        (["x"], "there are scan, pack, train"),
        ([], "the following arguments are required: COMMAND"),
        (
            ["track", "--chekpoint", "r"],
            "videossl track: no option --chekpoint; did you mean --checkpoint?",
        ),
        (
            ["scan", "a", "-o", "b", "--workers", "two"],
            "argument --workers: invalid int value: 'two'",
        ),
        (["scan", "-o"], "expected one argument"),
        (["completion", "csh"], "invalid choice: 'csh' (choose from"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(capsys, arguments, expected):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert expected in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "c", "a=1", "--dry-run", "b.c=2"],
        ["a=1", "--dry-run", "b.c=2", "--config", "c"],
        ["a=1", "b.c=2", "--config=c", "--dry-run"],
    ],
)
def test_settings_stand_anywhere_among_the_options(words):
    given = parse(["train", *words], COMMANDS)
    assert (given.config, given.dry_run, given.overrides) == ("c", True, ["a=1", "b.c=2"])


def test_a_run_without_a_config_says_what_is_needed(capsys):
    assert main(["train"]) == 2
    assert "--config is needed" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["--help"], ["track", "--help"], ["train", "--settings"]])
def test_a_reader_that_leaves_leaves_no_traceback(arguments):
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head` does when it has seen enough
    # Unbuffered, argparse itself would pass over the error.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [SCRIPT, *arguments], stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(theirs)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_sleep_while_they_wait_unless_told_otherwise(
    given, expected, monkeypatch, tmp_path
):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert main(["scan", str(tmp_path / "none"), "-o", str(tmp_path / "list.csv")]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_ctrl_c_is_one_line(tmp_path):
    code = "from videossl import __main__, commands\nimport time, types, sys\n"
    code += "from videossl.commands import doctor\n"
    code += "def wait(args): print('up', flush=True); time.sleep(60)\n"
    code += "doctor.run = wait; sys.exit(__main__.main(['doctor']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background inherit a Ctrl-C that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert one_line(said) == "videossl doctor: interrupted"
    assert process.returncode == 130


BUG = """
import sys
from videossl import __main__
from videossl.commands import doctor
def fail(args):
    raise ZeroDivisionError("of ours")
doctor.run = fail
sys.exit(__main__.main(["doctor", "--json"]))
"""


def test_an_unforeseen_error_in_a_log_keeps_its_traceback_and_ends_with_one_line():
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True)
    assert done.returncode == 70
    lines = done.stderr.strip().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith(
        "videossl doctor: unexpected ZeroDivisionError: of ours; its traceback is above"
    )
    assert done.stdout == ""


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_an_unforeseen_error_on_a_terminal_is_one_line_that_names_the_file(tmp_path, is_asked_for):
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "VIDEOSSL_TRACEBACK": str(int(is_asked_for)),
    }
    done = subprocess.run([sys.executable, "-c", BUG], stderr=theirs, env=environment)
    os.close(theirs)
    time.sleep(0.1)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 70
    assert ("Traceback" in said) == is_asked_for
    if is_asked_for:
        assert list(tmp_path.iterdir()) == []
        return
    (path,) = tmp_path.iterdir()
    assert f"its traceback is in {path} (VIDEOSSL_TRACEBACK=1 prints it)" in one_line(said)
    kept = path.read_text()
    assert kept.startswith("videossl doctor --json\nvideossl 0")
    assert "ZeroDivisionError: of ours" in kept


def test_a_broken_pipe_that_is_none_of_the_output_s_is_not_hidden(monkeypatch, capsys):
    def fail(arguments):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(__main__, "_run", fail)
    assert main(["doctor"]) == 70
    assert "unexpected BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "document"), [("--json", "README.md"), ("--allow-import", "CHANGELOG.md")]
)
def test_a_document_lists_the_commands_that_have_an_option(parsers, option, document):
    text = " ".join((Path(__file__).parents[1] / document).read_text().split())
    said = {
        "--json": r"`--json` prints the result of `([^`]*)`",
        "--allow-import": r"only where ([^.]*) are given `--allow-import`",
    }
    listed = set(re.search(said[option], text)[1].replace(" and ", " ").strip().split())
    having = {c for c, parser in parsers.items() if option in parser._option_string_actions}
    assert {name.strip("`,") for name in listed} == having


def test_json_of_a_scan_is_all_that_is_printed(video_folder, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(video_folder.parent, videos, ignore=shutil.ignore_patterns("*.parquet"))
    (videos / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "m.parquet"
    assert main(["scan", str(videos), "-o", str(out), "--workers", "1", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["ok"], result["broken"], result["rows"]) == (10, 1, 11)
    assert result["seconds"] == pytest.approx(25, abs=1)
    assert sum(result["reasons"].values()) == 1
    assert result["cuts"] is None  # not looked for without --deep
    assert "10 videos ok" in captured.err
    assert f"wrote {out}" in captured.err


def test_every_setting_of_a_run_is_listed_with_its_default_and_meaning(capsys):
    assert main(["train", "--settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_key = {line.split()[0]: line for line in lines}
    leaves = {"out", "train.steps", "data.sampling.skip_ends", "monitor.tracking.davis", "tasks"}
    assert leaves <= by_key.keys()
    assert by_key["train.steps"].split()[1] == "300"
    assert "cpu" in by_key["device"]
    assert "batches per optimiser step" in by_key["train.accumulate"]


def test_the_defaults_listed_are_those_of_the_config():
    import yaml

    config = Config(out="x", tasks={"cpc": {}}).model_dump(mode="json")
    for line in setting_lines(Config):
        key, default = re.match(r"(\S+)\s+(\(required\)|\[.*?\]|\{.*?\}|\S+)", line).groups()  # type: ignore[union-attr]
        if default == "(required)":
            assert key in ("out", "tasks")
            continue
        value = config
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(default) == value, line


@pytest.mark.parametrize("task", available())
def test_the_settings_of_each_task_are_listed(task):
    lines = setting_lines(load(task).Config, f"tasks.{task}.")
    assert {line.split()[0] for line in lines} >= {f"tasks.{task}.weight", f"tasks.{task}.stage"}


def test_settings_of_an_unknown_task_fail(capsys):
    assert main(["train", "--settings", "nothing"]) == 2
    assert "task 'nothing' is unknown" in one_line(capsys.readouterr().err)


@pytest.fixture(scope="module")
def bash_completion(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "videossl"
    done = subprocess.run(
        [SCRIPT, "completion", "bash"], capture_output=True, text=True, check=True
    )
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
    line += f"_shtab_videossl videossl {shlex.quote(words[-1])} {words[-2]}; "
    line += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    return [word for word in done.stdout.split("\n") if word]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], {"train", "track", "track-points"}),
        (["track", "--b"], {"--baselines"}),
        (["track", "--preset", "cr"], {"crw"}),
        (["completion", ""], {"bash", "zsh", "tcsh"}),
        (["doctor", "--j"], {"--json"}),
    ],
)
def test_bash_completes_commands_options_and_values(bash_completion, words, expected):
    assert set(completed(bash_completion, "videossl", *words)) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_every_option_of_every_command(bash_completion, parsers):
    for command, parser in parsers.items():
        options = {o for o in parser._option_string_actions if o.startswith("--")}
        assert set(completed(bash_completion, "videossl", command, "--")) == options


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_their_completion(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    if shell == "tcsh":
        return
    assert script.startswith("#compdef videossl")
