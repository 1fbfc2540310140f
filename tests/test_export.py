"""`videossl export`: files, their cards, and what is refused."""

import html
import json
import re

import numpy as np
import pytest
import torch
import yaml

import videossl
from videossl.__main__ import main
from videossl.export.model_card import loading_lines, text
from videossl.export.video_encoder import ClipForm, VideoEncoder, write_encoder_file
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.encoder_file import read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory, video_folder):
    """A run of three steps, with its held-out line at step 3."""
    folder = tmp_path_factory.mktemp("export")
    config = folder / "config.yaml"
    config.write_text(
        """
tasks: {arrow_of_time: {stage: res4, num_frames: 4, crop_size: 32}}
data: {short_side: 48, videos_per_step: 2, num_workers: 0, val_fraction: 0.3}
train: {steps: 3, eval_batches: 1, log_every: 1}
monitor: {pictures: false}
"""
    )
    arguments = [f"data.manifest={video_folder}", f"out={folder / 'run'}", "device=cpu"]
    assert main(["train", "--config", str(config), *arguments]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An exported encoder that sees few and small frames."""
    torch.manual_seed(0)
    encoder = VideoEncoder(Encoder(EncoderSpec("tiny", "res3")), ClipForm(2, 0.2, 20, 16)).eval()
    file = tmp_path_factory.mktemp("small") / "small.safetensors"
    write_encoder_file(file, encoder)
    return file


def card_of(file) -> tuple[dict, str]:
    content = file.with_name(f"{file.name}.md").read_text()
    _, front, body = content.split("---\n", 2)
    return yaml.safe_load(front), body


def loading_block(body: str) -> str:
    return re.search(r"## Load\n\n```python\n(.*?)```", body, re.DOTALL)[1]


@pytest.mark.parametrize("ending", [".safetensors", ".pt2", ".onnx"])
def test_the_cards_three_lines_give_the_encoders_features(small, tmp_path, monkeypatch, ending):
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"my encoder{ending}"
    assert main(["export", "--checkpoint", str(small), "-o", str(file)]) == 0
    encoder = videossl.load_encoder(small)
    size = encoder.clip.resize
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 3, size, size), dtype=np.uint8)
    monkeypatch.chdir(tmp_path)
    lines = loading_block(card_of(file)[1])
    assert len(lines.splitlines()) == 3
    names = {"video": video if ending == ".onnx" else torch.from_numpy(video)}
    with torch.no_grad():
        exec(lines, names)
        expected = encoder(torch.from_numpy(video))
    torch.testing.assert_close(torch.as_tensor(names["features"]), expected, atol=1e-5, rtol=1e-4)


def test_a_card_says_what_is_known_and_from_where(run, tmp_path, video_folder):
    file = tmp_path / "e.safetensors"
    assert (
        main(["export", "--checkpoint", str(run), "-o", str(file), "--licence", "CC-BY-4.0"]) == 0
    )
    front, body = card_of(file)
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "videossl"
    assert {"video", "tiny"} <= set(front["tags"])
    assert "10 videos that decode, of 10 sources, 0.00694 hours" in body  # 10 of 2.5 s
    assert "Tasks: arrow\\_of\\_time. 3 of 3 steps, seed 0." in body
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [r["val"]["arrow_of_time"] for r in record if "val" in r][-1]
    assert f"{measured['loss']:.4g}" in body
    assert "metrics.jsonl, 20" in body
    limits = body.split("## Limits")[1]
    assert "videossl track" in limits
    assert "held-out" not in limits
    assert str(video_folder.parent) not in body  # names, and no places of this machine
    assert str(run.parent) not in body
    assert videossl.__version__ in body
    assert torch.__version__ in body


def test_facts_travel_with_the_file(run, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert main(["export", "--checkpoint", str(run), "-o", str(first)]) == 0
    assert main(["export", "--checkpoint", str(first), "-o", str(second), "--stage", "res2"]) == 0
    facts = read_record(first)["facts"]
    assert facts == read_record(second)["facts"]
    assert facts["step"] == 3
    assert facts["config"]["tasks"].keys() == {"arrow_of_time"}
    assert read_record(second)["encoder"]["stage"] == "res2"
    assert card_of(second)[1].split("## Data")[1] == card_of(first)[1].split("## Data")[1]


def test_nothing_is_invented_where_nothing_is_known(checkpoint, tmp_path):
    file = tmp_path / "e.safetensors"
    assert main(["export", "--checkpoint", str(checkpoint), "-o", str(file)]) == 0
    front, body = card_of(file)
    assert front["license"] == "unknown"
    assert "No licence was stated" in body
    assert "## Data\n\nNot known" in body
    assert "## Recipe\n\nNot known" in body
    assert "Nothing is known to have been measured" in body
    for command in ("pretext-eval", "probe", "track", "track-points"):
        assert f"`videossl {command}`" in body.split("## Limits")[1]


def result(path, **changes):
    rows = {"trained": {"top1": [0.5, 0.4, 0.6], "num_videos": 12, "confusion": [[1, 2], [3, 4]]}}
    record = {"protocol": "linear", "manifest": "/secret/labels.parquet", "rows": rows, **changes}
    path.write_text(json.dumps(record))
    return str(path)


def test_results_are_taken_as_they_stand(run, tmp_path):
    file, given = tmp_path / "e.safetensors", result(tmp_path / "result.json")
    tracked = tmp_path / "tracked.json"
    rows = {"trained": {"global": {"J&F-Mean": 0.614159, "J-Mean": None}, "seconds_per_frame": 2.0}}
    tracked.write_text(json.dumps({"command": "videossl track", "split": "val", "rows": rows}))
    arguments = ["export", "--checkpoint", str(run), "-o", str(file)]
    assert main([*arguments, "--results", given, str(tracked)]) == 0
    body = card_of(file)[1]
    assert "| trained | 0.5 (0.4 to 0.6) | 12 |" in body
    assert "| | J&amp;F-Mean |" in body
    assert "| trained | 0.6142 |" in body
    assert "labels.parquet" in body
    assert "/secret" not in body
    assert "carries no digest" in body
    assert "`videossl probe`" not in body.split("## Limits")[1]
    assert [m["kind"] for m in read_record(file)["facts"]["measured"]] == [
        "val",
        "probe",
        "track",
    ]


def test_a_result_of_another_checkpoint_fails(run, tmp_path, capsys):
    given = result(tmp_path / "result.json", checkpoint_sha256="0" * 64, checkpoint="runs/other")
    file = tmp_path / "e.safetensors"
    assert main(["export", "--checkpoint", str(run), "-o", str(file), "--results", given]) == 2
    assert "is of another checkpoint (runs/other" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": {}}', '{"rows": 3}'])
def test_what_is_no_result_fails(run, tmp_path, capsys, content):
    (tmp_path / "r.json").write_text(content)
    file = tmp_path / "e.safetensors"
    arguments = ["export", "--checkpoint", str(run), "-o", str(file)]
    assert main([*arguments, "--results", str(tmp_path / "r.json")]) == 2
    assert "r.json" in capsys.readouterr().err


def test_names_are_shown_and_not_obeyed(run, tmp_path):
    name = "<script>alert(1)</script> [x](javascript:1) `**b**` | c"
    given = result(
        tmp_path / "result.json", rows={name: {"a<b>|": 1.0}}, manifest=f"/x/{name[:8]}\n# H"
    )
    file = tmp_path / "e`<img>.safetensors"
    arguments = ["export", "--checkpoint", str(run), "-o", str(file), "--results", given]
    assert main([*arguments, "--licence", "mine: <b>\n---\ntags: [x]"]) == 0
    front, body = card_of(file)
    assert front["license"] == "other"
    assert front["license_name"] == "mine: <b> --- tags: [x]"
    assert "x" not in front["tags"]
    prose = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", body)
    assert "<script" not in prose
    assert "<img" not in prose
    assert "\n# H" not in prose
    assert "](javascript" not in prose.replace("\\]\\(", "")
    row = next(line for line in prose.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_text_is_one_line_without_markup():
    assert text("a_b\n# *c* <d>&") == "a\\_b \\# \\*c\\* &lt;d&gt;&amp;"


@pytest.mark.parametrize(
    "description",
    [
        *("- a", "+ a", "* a", "1. a", "23) a", "> a", "# a", "=== a", "---", "===", "| a | b |"),
        *("    a", "~~~ a", "``` a", "[a](http://b.c)", "<http://b.c>", "<b>a</b>", "![a](b)"),
        "[a]: b",
    ],
)
def test_a_hostile_description_is_shown_as_it_stands(description):
    """By another's reader of Markdown, at the start of a line below another one."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    shown = re.sub("<p>|</p>", "", reader.render(f"above\n{text(description)}\n(below)\n"))
    assert "<" not in shown
    assert html.unescape(shown) == f"above\n{' '.join(description.split())}\n(below)\n"
    alone = reader.render(text(description))
    assert html.unescape(alone) == f"<p>{' '.join(description.split())}</p>\n"


@pytest.mark.parametrize(
    "address", ["https://a.b", "see ftp://a.b/c", "www.a.b", "_WWW.a.b", "me@a.b"]
)
def test_a_bare_address_becomes_no_link(address):
    """Where GitHub's rules look for one: `://` behind a scheme, `www.`, and `@` between words."""
    assert not re.search(r"\w://|www\.|\w@", text(address), re.IGNORECASE)
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    assert html.unescape(reader.render(text(address))) == f"<p>{address}</p>\n"


def test_loading_lines_quote_hostile_names(tmp_path):
    file = tmp_path / 'a"); import os; ("b.safetensors'
    compiled = compile(loading_lines(file, "safetensors"), "card", "exec")
    assert file.name in {c for c in compiled.co_consts if isinstance(c, str)}


NESTED = json.loads("[" * 900 + "]" * 900)


@pytest.mark.parametrize(
    "facts",
    [
        {"config": 3},
        {"config": {"tasks": 1}},
        {"data": {"videos": "x"}},
        {"measured": [1]},
        {"kind": "weights"},
        {"environment": [1]},
        {"measured": [{"kind": [], "rows": {}}]},
        {"measured": 5},
        {"measured": {"a": 1}},
        {"config": "x"},
        {"licence": 3},
        {"environment": {"packages": NESTED}},
        {
            "data": {
                **dict.fromkeys(("manifest", "as_of")),
                "videos": 1,
                "sources": 1,
                "hours": 10**400,
            }
        },
    ],
    ids=lambda facts: str(facts)[:40],
)
def test_facts_that_nobody_wrote_fail_in_one_line(checkpoint, tmp_path, capsys, facts):
    write_encoder_file(tmp_path / "a.safetensors", videossl.load_encoder(checkpoint), facts)
    arguments = ["--checkpoint", str(tmp_path / "a.safetensors")]
    earlier = {"b.safetensors": "an earlier file", "b.safetensors.md": "its card"}
    for name, content in earlier.items():
        (tmp_path / name).write_text(content)
    assert main(["export", *arguments, "-o", str(tmp_path / "b.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "facts" in error
    assert error.count("\n") == 1
    assert {name: (tmp_path / name).read_text() for name in earlier} == earlier
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", *earlier}


def test_a_character_that_no_file_can_hold_is_replaced(checkpoint, tmp_path):
    encoder, file = videossl.load_encoder(checkpoint), tmp_path / "b.safetensors"
    write_encoder_file(tmp_path / "a.safetensors", encoder, {"licence": "mine \ud800"})
    arguments = ["--checkpoint", str(tmp_path / "a.safetensors"), "-o", str(file)]
    assert main(["export", *arguments]) == 0
    assert "mine ?" in card_of(file)[1]


def test_the_licence_travels_with_the_file(checkpoint, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    stated = ["--licence", "cc-by-4.0"]
    assert main(["export", "--checkpoint", str(checkpoint), "-o", str(files[0]), *stated]) == 0
    assert main(["export", "--checkpoint", str(files[0]), "-o", str(files[1])]) == 0
    again = ["--checkpoint", str(files[1]), "-o", str(files[2]), "--licence", "mit"]
    assert main(["export", *again]) == 0
    assert [card_of(file)[0]["license"] for file in files] == ["cc-by-4.0", "cc-by-4.0", "mit"]


def test_what_urls_hold_of_secrets_is_not_published(checkpoint, tmp_path):
    from videossl.config import Config

    encoder = {"init": "https://me:pass@host/e.safetensors?token=abc#x"}
    data = {"manifest": "https://me:pass@host/v.parquet?token=abc"}
    davis = {"tracking": {"davis": "s3://key:pass@bucket/davis?token=abc"}}
    config = Config(
        out="simplecache::https://me:pass@host/run?token=abc",
        tasks={"t": {"list": ["x://me:pass@host/a?token=abc"], "why": "is a?b"}},
        encoder=encoder,
        data=data,
        monitor=davis,
    )
    state = torch.load(checkpoint, weights_only=True)
    state |= {"config": config.model_dump(mode="json"), "step": 1}
    torch.save(state, tmp_path / "step_000001.pt")
    file = tmp_path / "e.safetensors"
    arguments = ["--checkpoint", str(tmp_path / "step_000001.pt"), "-o", str(file)]
    result_file = result(tmp_path / "r.json", checkpoint="https://me:pass@host/c.pt?token=abc")
    assert main(["export", *arguments, "--results", result_file]) == 0
    published = json.dumps(read_record(file)) + file.with_name("e.safetensors.md").read_text()
    assert "pass" not in re.sub("passed", "", published)
    assert "token" not in published
    facts = read_record(file)["facts"]
    assert facts["config"]["encoder"]["init"] == "e.safetensors"
    assert facts["config"]["tasks"]["t"] == {"list": ["x://host/a"], "why": "is a?b"}


def test_json_is_the_result_and_nothing_else(small, tmp_path, capsys):
    import hashlib

    file = tmp_path / "e.pt2"
    arguments = ["--checkpoint", str(small), "-o", str(file), "--input-size", "20x30"]
    assert main(["export", *arguments, "--stage", "res2", "--maps", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "torch.export"
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["difference"]["relative"] <= 1e-4
    assert [3, 2, 3, 20, 30] in found["difference"]["videos"]
    body = card_of(file)[1]
    assert "any number of frames, 20 x 30 pixels" in body
    assert "maps of stage res2" in body
    assert "greatest difference from the module" in body


def test_a_program_that_differs_ends_with_one_line_and_exit_code_1(
    small, tmp_path, capsys, monkeypatch
):
    from videossl.export import programs

    def write(path, *_):
        path.write_bytes(b"a program that differs")
        raise programs.Unequal("greatest difference from the module 1")

    monkeypatch.setattr(programs, "write_torch_program", write)
    file = tmp_path / "e.pt2"
    assert main(["export", "--checkpoint", str(small), "-o", str(file)]) == 1
    error = capsys.readouterr().err
    assert "is not written: greatest difference" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "e.bin"], "end it in .safetensors, .pt2, .onnx"),
        (["-o", "e.onnx", "--format", "safetensors"], "must end in .safetensors"),
        (["-o", "e.safetensors", "--maps"], "--maps goes with torch.export and onnx only"),
        (["-o", "e.safetensors", "--input-size", "3x4"], "--input-size goes with"),
        (["-o", "e.safetensors", "--prefix", "model."], "--prefix goes with pytorchvideo and"),
        (["-o", "e.safetensors", "--stage", "res5"], "it has res2, res3"),
        (["-o", "e.safetensors", "--sha256", "00"], "is not the file asked for"),
        (["-o", "/proc/e.safetensors"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_fails_in_one_line(
    checkpoint, tmp_path, monkeypatch, capsys, arguments, says
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--checkpoint", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
