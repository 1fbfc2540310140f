"""Endings of file names: of videos that FFmpeg reads, and of lists."""

VIDEO_EXTENSIONS = frozenset(
    (
        # MP4 and what is made like it
        *(
            ".mp4",
            ".m4v",
            ".mov",
            ".qt",
            ".3gp",
            ".3gpp",
            ".3g2",
            ".3gp2",
            ".f4v",
            ".ismv",
            ".mj2",
            ".insv",
            ".360",
        ),
        # Matroska, AVI, Ogg, Flash, Windows Media, RealMedia
        *(
            ".mkv",
            ".mk3d",
            ".webm",
            ".avi",
            ".divx",
            ".xvid",
            ".amv",
            ".ogv",
            ".ogm",
            ".flv",
            ".kux",
        ),
        *(".wmv", ".asf", ".wm", ".wtv", ".rm", ".rmvb", ".rv", ".ivr"),
        # MPEG streams: of cameras, discs and receivers
        *(
            ".mpg",
            ".mpeg",
            ".mpe",
            ".m1v",
            ".m2v",
            ".mpv",
            ".m2p",
            ".vob",
            ".vro",
            ".evo",
            ".mod",
            ".tod",
        ),
        *(".ts", ".mts", ".m2t", ".m2ts", ".trp", ".tp", ".pva", ".ty"),
        # cameras, recorders and studios
        *(".mxf", ".gxf", ".dv", ".dif", ".dav", ".nut", ".nuv", ".nsv", ".ivf", ".y4m"),
        # bare streams without a container
        *(
            ".h261",
            ".h263",
            ".h264",
            ".264",
            ".h26l",
            ".avc",
            ".h265",
            ".265",
            ".hevc",
            ".h266",
            ".266",
            ".vvc",
        ),
        *(".obu", ".vc1", ".mjpeg", ".mjpg"),
        # animations and games
        *(".gif", ".apng", ".flc", ".fli", ".bik", ".smk", ".roq", ".viv"),
    )
)
LIST_EXTENSIONS = (".csv", ".tsv", ".txt", ".json")
