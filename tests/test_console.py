"""What is printed for people."""

import pytest

from pipeline.system.console import in_bytes, one_line, plain, print_table, print_values


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB"), (7 << 40, "7.0 TiB")],
)
def test_bytes(count, words):
    assert in_bytes(count) == words


def test_a_table_is_as_wide_as_its_cells_and_ends_with_its_sentences(capsys):
    print_table([{"note": "why", "a": 1, "b": "x"}, {"note": "", "a": 22, "b": "yy"}])
    assert capsys.readouterr().out == "a   b   note\n1   x   why\n22  yy\n"
    print_table([])
    assert not capsys.readouterr().out


def test_values_are_a_line_each_and_long_lists_are_cut_to_their_ends(capsys):
    print_values({"loss": 0.123456, "name": "ü\n", "curve": list(range(13)), "classes": ["é", 2]})
    assert capsys.readouterr().out.splitlines() == [
        "  loss             0.1235",
        "  name             ü\\n",
        "  curve            [0, 1, 2, ..., 10, 11, 12] (13 in all)",
        '  classes          ["é", 2]',
    ]


def test_names_hold_anything():
    assert plain("a\nb\x1b[2J ü") == "a\\nb\\x1b[2J ü"
    assert one_line(" a\n  b\x1b[2J\n") == "a b\\x1b[2J"
