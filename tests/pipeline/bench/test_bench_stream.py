from pipeline.bench.stream import bench_stream, measure


def test_what_is_carried_is_the_same_in_every_round() -> None:
    rounds = measure("videomambapro-tiny-test", 30, "cpu")
    assert [each.frames for each in rounds] == [3 * number for number in range(1, 11)]
    # Per layer, 3 inputs of 64 channels and 64 states of 4, in float32; a count and a digest.
    assert {each.carried_bytes for each in rounds} == {2 * 4 * (3 * 64 + 64 * 4) + 8 + 32}
    assert all(each.frames_per_s > 0 and each.resident_bytes > 2**20 for each in rounds)


def test_the_table_has_a_line_per_round() -> None:
    assert bench_stream("videomambapro-tiny-test", 10, "cpu").row_count == 10
