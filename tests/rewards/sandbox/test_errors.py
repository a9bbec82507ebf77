from rewards.sandbox.errors import DETAIL_LENGTH, Ended, printable


def test_untrusted_text_becomes_one_printable_line():
    assert printable(b"a\x1b[31mred\x1b[0m\r\nb\x00c") == "a [31mred [0m b c"


def test_bytes_that_are_no_text_are_shown_as_escapes():
    assert printable(b"\xff\xfe") == "\\xff\\xfe"


def test_of_a_long_text_the_end_is_kept():
    text = printable("x" * 100_000 + "the end")
    assert len(text) == DETAIL_LENGTH
    assert text.endswith("the end")


def test_an_ended_run_says_why():
    assert str(Ended("died", "exit status 1")) == "died: exit status 1"
    assert str(Ended("timeout")) == "timeout"
