"""Labels name what differs, and nothing else."""

from prunebench.leaderboard.variants import flatten, in_words, set_apart


def test_settings_are_flattened():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": (3,), "f": {}}) == {"a.b": 1, "a.c.d": "[1, 2]", "e": "[3]", "f": {}}


def test_one_differing_setting_is_told_of_all():
    assert set_apart([{"norm": "l1", "x": 1}, {"norm": "l2", "x": 1}]) == [{"norm": "l1"}, {"norm": "l2"}]


def test_an_ablation_names_what_was_changed_and_the_unchanged_one_nothing():
    plain = {"rate": 0.4, "ramp": "linear", "text": {"source": "alpaca"}}
    settings = [plain, plain | {"rate": 0.2}, plain | {"rate": 0.8}, plain | {"ramp": "cubic"}, plain | {"text": {"source": "c4"}}]
    assert set_apart(settings) == [{}, {"rate": 0.2}, {"rate": 0.8}, {"ramp": "cubic"}, {"source": "c4"}]


def test_a_full_grid_of_two_settings_tells_both():
    settings = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    assert set_apart(settings) == settings


def test_a_setting_that_some_lack_is_told_as_unset():
    assert set_apart([{"a": 1}, {}]) == [{"a": 1}, {"a": "unset"}]


def test_no_two_different_settings_are_told_alike():
    settings = [{"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": 0, "b": 2}]
    told = set_apart(settings)
    assert len({str(one) for one in told}) == len(told)


def test_fractions_are_told_with_few_digits_unless_those_tell_them_apart():
    assert set_apart([{"t": 2 / 3}, {"t": 0.33}]) == [{"t": 0.6667}, {"t": 0.33}]
    assert set_apart([{"t": 0.666666}, {"t": 0.666667}]) == [{"t": 0.666666}, {"t": 0.666667}]


def test_keys_that_end_alike_are_told_by_as_much_as_tells_them_apart():
    one_text = [{"text": {"source": "c4"}}, {"text": {"source": "self"}}]
    assert [in_words(told) for told in set_apart(one_text)] == ["source=c4", "source=self"]
    two_texts = [settings | {"finetune_text": {"source": "alpaca"}, "source": 1} for settings in one_text]
    two_texts[1] = two_texts[1] | {"finetune_text": {"source": "c4"}, "source": 2}
    words = [in_words(told) for told in set_apart(two_texts)]
    assert words == ["finetune_text.source=alpaca, source=1, text.source=c4", "finetune_text.source=c4, source=2, text.source=self"]
