"""Keeping the head and the tail of a long output."""

from hypothesis import example, given
from hypothesis import strategies as st

from fermata.sandboxes.clip import Clip


def clipped(limit: int, pieces: list[bytes]) -> Clip:
    clip = Clip(limit)
    for piece in pieces:
        clip.write(piece)
    return clip


@given(st.integers(0, 40), st.lists(st.binary(max_size=30), max_size=20))
@example(0, [b"x"])
@example(1, [b"ab"])
@example(4, [b"ab", b"cd", b"e"])
def test_whatever_the_pieces_the_first_and_last_half_are_kept(limit: int, pieces: list[bytes]) -> None:
    clip = clipped(limit, pieces)
    whole = b"".join(pieces)
    if len(whole) <= limit:
        assert (clip.getvalue(), clip.truncated) == (whole, False)
        return
    assert clip.truncated
    tail_at = len(whole) - limit // 2
    head = whole[: limit - limit // 2]
    between = b"\n[%d bytes left out]\n" % (len(whole) - limit)
    assert clip.getvalue() == head + between + whole[tail_at:]


def test_memory_is_bounded_whatever_is_written() -> None:
    clip = clipped(1000, [b"x"] * 100_000)
    assert sum(map(len, clip._tail)) <= 500
    assert len(clip._head) == 500
