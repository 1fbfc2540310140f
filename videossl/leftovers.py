"""Tells what systems, NAS boxes and tools leave behind in people's folders from the data that lies beside it."""

import re

_NAMES = frozenset(
    (
        # macOS, also through SMB, AFP and zip files
        *(
            ".ds_store",
            ".appledouble",
            ".appledb",
            ".appledesktop",
            ".apdisk",
            ".localized",
            "icon\r",
        ),
        *(".trashes", ".trash", ".spotlight-v100", ".fseventsd", ".temporaryitems", "__macosx"),
        *(".documentrevisions-v100", ".volumeicon.icns", "network trash folder", "temporary items"),
        # Windows
        *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("$recycle.bin", "system volume information"),
        # Linux, NAS boxes, snapshots
        *("lost+found", ".directory", ".thumbnails", "@eadir", "@tmp", "@recycle", "#recycle"),
        *("@recently-snapshot", "#snapshot", ".snapshot", ".snapshots"),
        # tools
        *(".git", ".svn", ".hg", ".bzr", ".idea", ".vscode", ".ipynb_checkpoints", "__pycache__"),
        *(
            ".dropbox",
            ".dropbox.cache",
            ".dropbox.attr",
            ".stfolder",
            ".stversions",
            ".rsync-partial",
            ".~tmp~",
        ),
    )
)
# AppleDouble companions; trash by user; files deleted while open, over NFS and FUSE; locks of offices and ours; streams of
# NTFS as files; what chkdsk found; the old recycle bin, in capitals only because a recycler can be a class of actions.
_PATTERN = re.compile(
    r"\._.*|\.Trash-.*|\.nfs[0-9a-fA-F]{8,}|\.fuse_hidden.*|\.~lock\..*|~\$.*|.*:Zone\.Identifier"
    r"|\..*videossl\.lock|\.com\.apple\..*|FOUND\.\d{3}|RECYCLER|RECYCLED",
    re.DOTALL,
)


def is_system_leftover(name: str) -> bool:
    """Whether a file or folder of this name (the last part of a path) was left behind by a system or a tool.

    Such a name is never data, whatever its ending: `._clip.mp4` is the resource fork of `clip.mp4`, not a video.
    """
    return name.lower() in _NAMES or _PATTERN.fullmatch(name) is not None
