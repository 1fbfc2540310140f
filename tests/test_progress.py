import io

from videossl.io.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_items_come_through_unchanged_and_in_order():
    assert list(track([3, 1, 2], description="reading", stream=io.StringIO())) == [3, 1, 2]
    assert list(track([3, 1, 2], description="reading", stream=Terminal())) == [3, 1, 2]


def test_plain_output_is_one_line_per_tenth():
    stream = io.StringIO()
    list(track(range(1000), description="reading", stream=stream))
    expected = [f"reading: {done}/1000" for done in range(100, 1001, 100)]
    assert stream.getvalue().splitlines() == expected


def test_short_loop_prints_every_item_once():
    stream = io.StringIO()
    list(track(range(3), description="reading", stream=stream))
    assert stream.getvalue().splitlines() == ["reading: 1/3", "reading: 2/3", "reading: 3/3"]


def test_unknown_length_prints_only_the_final_count():
    stream = io.StringIO()
    list(track((i for i in range(7)), description="reading", stream=stream))
    assert stream.getvalue().splitlines() == ["reading: 7"]


def test_given_total_wins_over_no_length():
    stream = io.StringIO()
    list(track(iter("ab"), description="reading", total=2, stream=stream))
    assert stream.getvalue().splitlines() == ["reading: 1/2", "reading: 2/2"]


def test_empty_loop_yields_nothing_and_does_not_divide_by_zero():
    stream = io.StringIO()
    assert list(track([], description="reading", stream=stream)) == []
    assert stream.getvalue() == "reading: 0\n"


def test_terminal_shows_description_and_count():
    stream = Terminal()
    list(track(range(4), description="reading", stream=stream))
    assert "reading" in stream.getvalue()
    assert "4/4" in stream.getvalue()
