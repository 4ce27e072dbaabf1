"""What a person sees of a run in a terminal."""

from comvex.training.progress import fitting


def test_as_many_notes_are_shown_as_there_is_room_for():
    notes = ["loss 0.355", "val top-1 62.5 %", "43 pictures/s"]
    assert [fitting(notes, room) for room in (200, 43, 42, 28, 27, 9, -3)] == [
        "loss 0.355, val top-1 62.5 %, 43 pictures/s",
        "loss 0.355, val top-1 62.5 %, 43 pictures/s",
        "loss 0.355, val top-1 62.5 %",
        "loss 0.355, val top-1 62.5 %",
        "loss 0.355",
        "",
        "",
    ]
