import pytest

from videossl.io.input_files import is_system_leftover


@pytest.mark.parametrize(
    "name",
    [
        *(
            "._clip.mp4",
            "._00000.png",
            ".Trash-1000",
            "@eaDir",
            "__MACOSX",
            ".DS_Store",
            "Thumbs.db",
            "thumbs.DB",
        ),
        *(
            "desktop.ini",
            "Desktop.ini",
            ".AppleDouble",
            "$RECYCLE.BIN",
            "$Recycle.Bin",
            "System Volume Information",
        ),
        *(
            "lost+found",
            ".ipynb_checkpoints",
            ".git",
            ".Trashes",
            ".Spotlight-V100",
            ".fseventsd",
            "#recycle",
        ),
        *(
            "@Recycle",
            ".nfs000000000123abcd00000001",
            ".fuse_hidden0000000300000001",
            ".~lock.list.csv#",
        ),
        *(
            "~$list.xlsx",
            "clip.mp4:Zone.Identifier",
            "Icon\r",
            "__pycache__",
            ".snapshot",
            "FOUND.000",
            "RECYCLER",
        ),
    ],
)
def test_what_systems_leave_behind_is_known_by_its_name(name: str) -> None:
    assert is_system_leftover(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "clip.mp4",
            ".hidden.mp4",
            "_.mp4",
            "-dash.mp4",
            "git",
            "recycler",
            "Trash",
            "thumbs.mp4",
            "found.mp4",
        ),
        *(
            "lost and found",
            "desktop",
            "MACOSX",
            "@home",
            "#1 goal.mp4",
            "~clip.mp4",
            "$clip.mp4",
            "..mp4",
            "",
        ),
    ],
)
def test_data_of_people_is_not_taken_for_a_leftover(name: str) -> None:
    assert not is_system_leftover(name)
