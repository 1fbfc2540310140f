"""Reading DAVIS trees of both forms, writing palette masks, scoring folders of results."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from videossl.__main__ import main
from videossl.errors import UserError
from videossl.io.index_masks import PALETTE, read_mask, write_mask
from videossl.tracking.davis import read_tree
from videossl.tracking.scoring import (
    check_results,
    global_scores,
    score_results,
    score_sequence,
    write_tables,
)

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = SHARED / "reference" / "davis_golden.json"
H, W = 40, 60


def golden_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", GOLDEN.with_name("davis_golden_gen.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def masks_of(num_frames: int, num_objects: int = 1) -> list[NDArray[np.uint8]]:
    masks = [np.zeros((H, W), np.uint8) for _ in range(num_frames)]
    for index, mask in enumerate(masks):
        for number in range(1, num_objects + 1):
            mask[4 + 8 * number : 12 + 8 * number, 5 + index : 20 + index] = number
    return masks


def write_tree(
    root: Path,
    *,
    form: str,
    year: str,
    num_frames: int = 6,
    names: tuple[str, ...] = ("ant", "bee"),
) -> None:
    for name in names:
        (root / "JPEGImages/480p" / name).mkdir(parents=True)
        (root / "Annotations/480p" / name).mkdir(parents=True)
        for index, mask in enumerate(masks_of(num_frames, 1 if form == "2016" else 2)):
            Image.new("RGB", (W, H), "gray").save(root / f"JPEGImages/480p/{name}/{index:05d}.jpg")
            path = root / f"Annotations/480p/{name}/{index:05d}.png"
            if form == "2016":
                Image.fromarray(mask * 255).save(path)
            else:
                mask[0, 0] = 255
                write_mask(path, mask)
    lists = root / "ImageSets" / year
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names))


@pytest.mark.parametrize(("form", "ids"), [("2016", (1,)), ("2017", (1, 2))])
def test_both_forms_are_read_and_said(
    tmp_path: Path, form: str, ids: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    write_tree(tmp_path, form=form, year=form)
    with caplog.at_level("INFO", "videossl"):
        sequences = read_tree(tmp_path, split="val", need_masks=True)
    assert [s.name for s in sequences] == ["ant", "bee"]
    assert {s.form for s in sequences} == {form}
    assert {s.object_ids for s in sequences} == {ids}
    assert f"DAVIS {form} form" in caplog.text
    np.testing.assert_array_equal(sequences[0].mask(2), masks_of(6, len(ids))[2])


def test_a_split_in_both_years_is_taken_from_the_year_of_the_masks(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016")
    (tmp_path / "ImageSets/2017").mkdir()
    (tmp_path / "ImageSets/2017/val.txt").write_text("elsewhere\n")
    assert [s.name for s in read_tree(tmp_path, split="val")] == ["ant", "bee"]


def test_lists_of_frames_are_read_as_lists_of_sequences(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016")
    lines = [
        f"/JPEGImages/480p/bee/{i:05d}.jpg /Annotations/480p/bee/{i:05d}.png" for i in range(6)
    ]
    (tmp_path / "ImageSets/2016/val.txt").write_text("\n".join(lines))
    assert [s.name for s in read_tree(tmp_path, split="val")] == ["bee"]


def test_only_the_first_mask_decides_the_form_and_need_exist(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2017", year="2017")
    for path in (tmp_path / "Annotations/480p").rglob("*.png"):
        if path.stem != "00000":
            path.unlink()
    sequences = read_tree(tmp_path, split="val")
    assert not any(s.is_annotated for s in sequences)
    assert len(sequences[0].frame_names) == 6


def test_palette_is_that_of_davis() -> None:
    assert PALETTE[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_written_masks_are_read_back(tmp_path: Path) -> None:
    mask = masks_of(1, 3)[0]
    write_mask(tmp_path / "new" / "mask.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "mask.png"), mask)
    with Image.open(tmp_path / "new" / "mask.png") as image:
        assert image.mode == "P"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mask.png"]


def test_all_problems_of_a_tree_are_listed_at_once(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016", names=("ant", "bee", "cat", "dog"))
    Image.new("L", (W + 1, H), 255).save(tmp_path / "Annotations/480p/ant/00000.png")
    Image.new("L", (W, H), 0).save(tmp_path / "Annotations/480p/bee/00000.png")
    (tmp_path / "Annotations/480p/cat/00000.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        read_tree(tmp_path, split="val")
    for part in (
        "ant: frame 00000 is 60x40 but the first mask is 61x40",
        "bee: the first mask holds no",
        "damaged mask",
    ):
        assert part in str(error.value)
    assert "complete: dog" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_frame_and_mask_is_looked_at_before_anything_is_done(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016", names=("ant", "bee", "cat", "dog"))
    jpeg = tmp_path / "JPEGImages/480p/ant/00003.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:400])
    Image.new("RGB", (W, H + 2)).save(tmp_path / "JPEGImages/480p/bee/00004.jpg")
    png = tmp_path / "Annotations/480p/cat/00002.png"
    png.write_bytes(png.read_bytes()[:-20])
    with pytest.raises(UserError) as error:
        read_tree(tmp_path, split="val")
    for part in ("ant/00003.jpg: damaged", "bee: frame 00004 is 60x42", "cat/00002.png: damaged"):
        assert part in str(error.value)
    assert "complete: dog" in str(error.value)


def test_frames_named_by_numbers_come_in_their_order(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016", num_frames=12, names=("ant",))
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for path in (tmp_path / folder / "480p/ant").glob(f"*.{ending}"):
            path.rename(path.with_name(f"{int(path.stem)}.{ending}"))
    (sequence,) = read_tree(tmp_path, split="val", need_masks=True)
    assert sequence.frame_names == tuple(str(index) for index in range(12))


def test_names_of_sequences_may_hold_blanks(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2017", year="2017", names=("my ant",))
    assert [s.name for s in read_tree(tmp_path, split="val")] == ["my ant"]


def test_a_name_that_leads_elsewhere_fails(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2017", year="2017", names=("ant",))
    (tmp_path / "ImageSets/2017/val.txt").write_text("..\n")
    with pytest.raises(UserError, match=r"sequence name '\.\.' may not"):
        read_tree(tmp_path, split="val")


def test_what_is_lacking_to_score_is_said_by_name(tmp_path: Path) -> None:
    write_tree(tmp_path, form="2016", year="2016")
    (tmp_path / "Annotations/480p/ant/00003.png").unlink()
    ant, bee = read_tree(tmp_path, split="val")
    assert ant.why_unscored == "no masks for 1 frames (first: 00003)"
    assert len(ant.mask_paths) == 1
    assert bee.why_unscored is None
    with pytest.raises(UserError, match="ant: no masks for 1 frames"):
        read_tree(tmp_path, split="val", need_masks=True)


@pytest.mark.parametrize("value", [1, 255])
def test_one_object_may_be_written_as_1_or_255_in_a_palette(tmp_path: Path, value: int) -> None:
    write_tree(tmp_path / "davis", form="2016", year="2016", names=("ant",))
    write_results(tmp_path / "out", [mask * np.uint8(value) for mask in masks_of(6)], ("ant",))
    (sequence,) = read_tree(tmp_path / "davis", split="val", need_masks=True)
    assert global_scores(score_sequence(tmp_path / "out", sequence))["J&F-Mean"] == 1.0


def test_an_id_that_the_first_mask_skips_is_scored_as_the_official_code_does(
    tmp_path: Path,
) -> None:
    write_tree(tmp_path / "davis", form="2017", year="2017", names=("ant",))
    for path in (tmp_path / "davis/Annotations/480p/ant").glob("*.png"):
        mask = read_mask(path)
        write_mask(path, np.where(mask == 2, np.uint8(3), mask))
    skipped = [np.where(mask == 2, np.uint8(3), mask) for mask in masks_of(6, 2)]
    write_results(tmp_path / "out", skipped, ("ant",))
    (sequence,) = read_tree(tmp_path / "davis", split="val", need_masks=True)
    assert sequence.object_ids == (1, 3)
    scores = score_sequence(tmp_path / "out", sequence)
    assert [score.object_id for score in scores] == [1, 2, 3]
    assert scores[1].j_frames == (1.0,) * 4  # empty in both
    write_mask(tmp_path / "out/ant/00002.png", masks_of(6, 2)[2])  # an object 2, and no 3
    scores = score_sequence(tmp_path / "out", sequence)
    assert scores[1].j_frames[1] == scores[2].j_frames[1] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test-dev"}, "split 'test-dev' is unknown; allowed: val"),
        ({"split": "val", "only": ["cow"]}, "sequence cow is not in split val; allowed: ant, bee"),
    ],
)
def test_unknown_names_fail_with_those_allowed(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    write_tree(tmp_path, form="2016", year="2016")
    with pytest.raises(UserError, match=message):
        read_tree(tmp_path, **arguments)


def test_a_tree_without_masks_fails(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages/480p/ant").mkdir(parents=True)
    with pytest.raises(UserError, match="has no Annotations/480p"):
        read_tree(tmp_path, split="val")


def write_results(
    folder: Path, masks: list[NDArray[np.uint8]], names: tuple[str, ...] = ("ant", "bee")
) -> None:
    for name in names:
        for index, mask in enumerate(masks):
            write_mask(folder / name / f"{index:05d}.png", mask)


def test_perfect_results_score_one_and_grey_results_score_the_same(tmp_path: Path) -> None:
    write_tree(tmp_path / "davis", form="2016", year="2016")
    write_results(tmp_path / "palette", masks_of(6))
    for index, mask in enumerate(masks_of(6)):
        for name in ("ant", "bee"):
            (tmp_path / "grey" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask * 255).save(tmp_path / "grey" / name / f"{index:05d}.png")
    sequences = read_tree(tmp_path / "davis", split="val", need_frames=False, need_masks=True)
    for form in ("palette", "grey"):
        scores = [score for s in sequences for score in score_sequence(tmp_path / form, s)]
        assert global_scores(scores)["J&F-Mean"] == 1.0
        assert len(scores[0].j_frames) == 4  # the first and the last frame are not scored


def test_missing_frames_are_listed(tmp_path: Path) -> None:
    write_tree(tmp_path / "davis", form="2016", year="2016")
    write_results(tmp_path / "out", masks_of(6))
    (tmp_path / "out/ant/00002.png").unlink()
    (tmp_path / "out/ant/00000.png").unlink()  # not scored: may be absent
    (tmp_path / "out/bee/00004.png").unlink()
    sequences = read_tree(tmp_path / "davis", split="val", need_masks=True)
    with pytest.raises(UserError, match=r"ant lacks 1 of 4 \(first: 00002.png\); bee lacks 1 of 4"):
        check_results(tmp_path / "out", sequences)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((H, W), 3, np.uint8), "object id 3"),
        (np.full((H, W), 255, np.uint8), "has id 255, which is void"),
        (np.zeros((H, W + 2), np.uint8), "62x40 but the ground truth is 60x40"),
    ],
)
def test_masks_that_cannot_be_scored_fail(
    tmp_path: Path, mask: NDArray[np.uint8], message: str
) -> None:
    write_tree(tmp_path / "davis", form="2017", year="2017")
    write_results(tmp_path / "out", [mask] * 6)
    sequences = read_tree(tmp_path / "davis", split="val", need_masks=True)
    with pytest.raises(UserError, match=message):
        score_sequence(tmp_path / "out", sequences[0])


def test_processes_side_by_side_score_the_same_and_list_all_problems(tmp_path: Path) -> None:
    write_tree(tmp_path / "davis", form="2017", year="2017", names=("ant", "bee", "cat"))
    write_results(tmp_path / "out", masks_of(6, 2), names=("ant", "bee", "cat"))
    sequences = read_tree(tmp_path / "davis", split="val", need_masks=True)
    one = score_results(tmp_path / "out", sequences)
    assert one == score_results(tmp_path / "out", sequences, num_workers=2)
    assert [score.name for score in one] == ["ant_1", "ant_2", "bee_1", "bee_2", "cat_1", "cat_2"]
    write_mask(tmp_path / "out/ant/00002.png", np.full((H, W), 7, np.uint8))
    write_mask(tmp_path / "out/cat/00003.png", np.zeros((H, W + 2), np.uint8))
    for num_workers in (1, 2):
        with pytest.raises(UserError, match=r"2 of 3 .*object id 7.*; frame 00003 of cat is 62x40"):
            score_results(tmp_path / "out", sequences, num_workers=num_workers)


def test_tables_have_the_official_columns(tmp_path: Path) -> None:
    write_tree(tmp_path / "davis", form="2017", year="2017")
    write_results(tmp_path / "out", masks_of(6, 2))
    sequences = read_tree(tmp_path / "davis", split="val", need_masks=True)
    scores = [score for s in sequences for score in score_sequence(tmp_path / "out", s)]
    write_tables(tmp_path / "tables", "val", scores)
    assert (tmp_path / "tables/global_results-val.csv").read_text().splitlines() == [
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay",
        "1.000,1.000,1.000,0.000,1.000,1.000,0.000",
    ]
    assert (tmp_path / "tables/per-sequence_results-val.csv").read_text().splitlines()[:3] == [
        "Sequence,J-Mean,F-Mean",
        "ant_1,1.000,1.000",
        "ant_2,1.000,1.000",
    ]


@pytest.mark.skipif(not GOLDEN.exists(), reason="no shared reference folder beside the checkout")
def test_score_command_equals_the_official_evaluator(tmp_path: Path) -> None:
    golden_generator().main(str(tmp_path / "made"))
    tree, results = tmp_path / "made" / "DAVIS", tmp_path / "made" / "pred"
    out = tmp_path / "scores"
    assert (
        main(["score", str(results), "--davis", str(tree), "--split", "val", "--out", str(out)])
        == 0
    )
    golden = json.loads(GOLDEN.read_text())
    result = json.loads((out / "result.json").read_text())
    for name, value in golden["global"].items():
        assert result["global"][name] == pytest.approx(value, abs=1e-6)
    for name, value in golden["per_object"].items():
        np.testing.assert_allclose(
            result["per_object"][name]["F_frames"], value["F_frames"], atol=1e-6
        )


def test_old_tables_are_never_read_again(tmp_path: Path) -> None:
    write_tree(tmp_path / "davis", form="2016", year="2016")
    arguments = [
        "score",
        str(tmp_path / "res"),
        "--davis",
        str(tmp_path / "davis"),
        "--out",
        str(tmp_path / "out"),
    ]
    write_results(tmp_path / "res", masks_of(6))
    assert main(arguments) == 0
    first = (tmp_path / "out/global_results-val.csv").read_text()
    write_results(tmp_path / "res", [np.zeros((H, W), np.uint8)] * 6)
    assert main(arguments) == 0
    assert (tmp_path / "out/global_results-val.csv").read_text() != first
